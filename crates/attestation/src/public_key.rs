//! Public keys of certificates, COSE structures, SPDM reports and TPM quotes, and what they signed.
//!
//! Two implementations that check the same: the portable one, which also compiles to WebAssembly, and with the feature `aws-lc` the one
//! that TLS uses, several times faster.

use std::borrow::Cow;

use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION},
    x509::SubjectPublicKeyInfo,
};

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureFault {
    /// It is not of this key over this message, or the key is no key.
    #[error("the signature is invalid")]
    Invalid,
    /// The algorithm does not belong to the key, or is not implemented.
    #[error("the signature algorithm does not fit the key, or is not implemented")]
    Algorithm,
}

/// Hash of the message that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageHash {
    Sha256,
    Sha384,
    Sha512,
}

/// How an ECDSA signature is written. An RSA signature has one form only.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signature<'a> {
    /// `SEQUENCE { r, s }`, as in certificates.
    Der(&'a [u8]),
    /// `r || s`, each as long as the curve's order.
    Fixed(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Rsa,
}

/// A key of a kind that is implemented. Whether its bytes are a key shows when it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    kind: Kind,
    /// SEC1 point, or PKCS#1 DER.
    bytes: Vec<u8>,
}

impl PublicKey {
    /// The key of a certificate. `None`: a kind that is not implemented.
    pub(crate) fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let algorithm = &spki.algorithm;
        let kind = if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            Kind::Rsa
        } else if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = algorithm.parameters.as_ref()?.as_oid().ok()?;
            if curve == OID_EC_P256 {
                Kind::P256
            } else if curve == OID_NIST_EC_P384 {
                Kind::P384
            } else {
                return None;
            }
        } else {
            return None;
        };
        Some(Self { kind, bytes: spki.subject_public_key.data.to_vec() })
    }

    /// A point in uncompressed form; its length tells the curve. `None`: no such point.
    pub(crate) fn from_point(point: &[u8]) -> Option<Self> {
        let kind = match point {
            [4, rest @ ..] if rest.len() == 64 => Kind::P256,
            [4, rest @ ..] if rest.len() == 96 => Kind::P384,
            _ => return None,
        };
        Some(Self { kind, bytes: point.to_vec() })
    }

    /// Bytes of `r` and of `s`; `None` for RSA.
    pub(crate) fn scalar_length(&self) -> Option<usize> {
        match self.kind {
            Kind::P256 => Some(32),
            Kind::P384 => Some(48),
            Kind::Rsa => None,
        }
    }

    /// Verifies `signature` over `message`. ECDSA with the hash of the curve's length; RSA with PKCS#1 v1.5 padding, 2048 bits at least.
    pub(crate) fn verify(&self, hash: MessageHash, message: &[u8], signature: Signature<'_>) -> Result<(), SignatureFault> {
        let key = &self.bytes;
        let holds = match (self.kind, hash) {
            (Kind::P256, MessageHash::Sha256) => backend::ecdsa_p256_sha256(key, message, &der_of_p256(signature)?),
            (Kind::P384, MessageHash::Sha384) => backend::ecdsa_p384_sha384(key, message, &der_of_p384(signature)?),
            (Kind::Rsa, _) => {
                let (Signature::Der(signature) | Signature::Fixed(signature)) = signature;
                backend::rsa_pkcs1(key, hash, message, signature)
            }
            _ => return Err(SignatureFault::Algorithm),
        };
        holds.then_some(()).ok_or(SignatureFault::Invalid)
    }
}

fn der_of_p256(signature: Signature<'_>) -> Result<Cow<'_, [u8]>, SignatureFault> {
    match signature {
        Signature::Der(der) => Ok(Cow::Borrowed(der)),
        Signature::Fixed(fixed) => {
            let signature = p256::ecdsa::Signature::from_slice(fixed).map_err(|_| SignatureFault::Invalid)?;
            Ok(Cow::Owned(signature.to_der().as_bytes().to_vec()))
        }
    }
}

fn der_of_p384(signature: Signature<'_>) -> Result<Cow<'_, [u8]>, SignatureFault> {
    match signature {
        Signature::Der(der) => Ok(Cow::Borrowed(der)),
        Signature::Fixed(fixed) => {
            let signature = p384::ecdsa::Signature::from_slice(fixed).map_err(|_| SignatureFault::Invalid)?;
            Ok(Cow::Owned(signature.to_der().as_bytes().to_vec()))
        }
    }
}

#[cfg(feature = "aws-lc")]
use aws_lc as backend;
#[cfg(not(feature = "aws-lc"))]
use portable as backend;

#[cfg(not(feature = "aws-lc"))]
mod portable {
    use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
    use p384::ecdsa::signature::hazmat::PrehashVerifier as _;
    use rsa::{RsaPublicKey, pkcs1::DecodeRsaPublicKey as _, pkcs1v15, signature::Verifier as _, traits::PublicKeyParts as _};
    use sha2::{Digest, Sha256, Sha384, Sha512, digest::const_oid::AssociatedOid};

    use super::MessageHash;

    const SHORTEST_MODULUS: usize = 256;

    pub(super) fn ecdsa_p256_sha256(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key);
        let signature = p256::ecdsa::Signature::from_der(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_prehash(&Sha256::digest(message), &signature).is_ok())
    }

    pub(super) fn ecdsa_p384_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key);
        let signature = p384::ecdsa::Signature::from_der(signature);
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_prehash(&Sha384::digest(message), &signature).is_ok())
    }

    pub(super) fn rsa_pkcs1(key: &[u8], hash: MessageHash, message: &[u8], signature: &[u8]) -> bool {
        match hash {
            MessageHash::Sha256 => rsa::<Sha256>(key, message, signature),
            MessageHash::Sha384 => rsa::<Sha384>(key, message, signature),
            MessageHash::Sha512 => rsa::<Sha512>(key, message, signature),
        }
    }

    fn rsa<D: Digest + AssociatedOid>(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = RsaPublicKey::from_pkcs1_der(key).ok().filter(|key| key.size() >= SHORTEST_MODULUS);
        let (Some(key), Ok(signature)) = (key, pkcs1v15::Signature::try_from(signature)) else { return false };
        pkcs1v15::VerifyingKey::<D>::new(key).verify(message, &signature).is_ok()
    }
}

#[cfg(feature = "aws-lc")]
mod aws_lc {
    use webpki::aws_lc_rs::{
        ECDSA_P256_SHA256, ECDSA_P384_SHA384, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    };

    use super::MessageHash;

    pub(super) fn ecdsa_p256_sha256(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        ECDSA_P256_SHA256.verify_signature(key, message, signature).is_ok()
    }

    pub(super) fn ecdsa_p384_sha384(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        ECDSA_P384_SHA384.verify_signature(key, message, signature).is_ok()
    }

    pub(super) fn rsa_pkcs1(key: &[u8], hash: MessageHash, message: &[u8], signature: &[u8]) -> bool {
        let algorithm = match hash {
            MessageHash::Sha256 => RSA_PKCS1_2048_8192_SHA256,
            MessageHash::Sha384 => RSA_PKCS1_2048_8192_SHA384,
            MessageHash::Sha512 => RSA_PKCS1_2048_8192_SHA512,
        };
        algorithm.verify_signature(key, message, signature).is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

    use super::{MessageHash, PublicKey, Signature, SignatureFault};

    const AZURE: [&[u8]; 2] =
        [include_bytes!("../roots/azure-virtual-tpm-root-2023.der"), include_bytes!("../intermediates/azure-global-virtual-tpm-ca-03.der")];
    const GOOGLE: [&[u8]; 2] =
        [include_bytes!("../roots/google-ek-ak-ca-root.der"), include_bytes!("../intermediates/google-ek-ak-ca-intermediate.der")];
    const NVIDIA: &[u8] = include_bytes!("../roots/nvidia-device-identity-ca.der");

    /// What the key of `issuer` says about the signature of `certificate`, hashed with `hash`, after `change` of the message.
    fn verify(issuer: &[u8], certificate: &[u8], hash: MessageHash, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), SignatureFault> {
        let (_, issuer) = X509Certificate::from_der(issuer).unwrap();
        let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
        let mut message = certificate.tbs_certificate.as_ref().to_vec();
        change(&mut message);
        let key = PublicKey::from_spki(issuer.public_key()).unwrap();
        key.verify(hash, &message, Signature::Der(&certificate.signature_value.data))
    }

    #[test]
    fn issuers_that_come_with_this_crate_are_signed_by_their_roots() {
        for ([root, issuer], hash, other) in
            [(AZURE, MessageHash::Sha384, MessageHash::Sha512), (GOOGLE, MessageHash::Sha256, MessageHash::Sha384)]
        {
            assert_eq!(verify(root, issuer, hash, |_| ()), Ok(()));
            assert_eq!(verify(root, issuer, hash, |message| message[100] ^= 1), Err(SignatureFault::Invalid));
            assert_eq!(verify(root, issuer, other, |_| ()), Err(SignatureFault::Invalid));
        }
        assert_eq!(verify(AZURE[0], GOOGLE[1], MessageHash::Sha256, |_| ()), Err(SignatureFault::Invalid));
    }

    #[test]
    fn the_curve_decides_about_the_hash() {
        assert_eq!(verify(NVIDIA, NVIDIA, MessageHash::Sha384, |_| ()), Ok(()));
        for hash in [MessageHash::Sha256, MessageHash::Sha512] {
            assert_eq!(verify(NVIDIA, NVIDIA, hash, |_| ()), Err(SignatureFault::Algorithm));
        }
    }

    #[test]
    fn points_are_uncompressed_and_of_a_known_curve() {
        assert_eq!(PublicKey::from_point(&[[4].as_slice(), &[1; 64]].concat()).and_then(|key| key.scalar_length()), Some(32));
        assert_eq!(PublicKey::from_point(&[[4].as_slice(), &[1; 96]].concat()).and_then(|key| key.scalar_length()), Some(48));
        for (head, length) in [(4, 63), (4, 65), (4, 132), (2, 64), (3, 96)] {
            assert_eq!(PublicKey::from_point(&[[head].as_slice(), &vec![1; length]].concat()), None, "{head} and {length} bytes");
        }
    }
}
