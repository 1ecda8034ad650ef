//! The two signature algorithms of AMD's chain: RSA-PSS with SHA-384 for certificates, ECDSA P-384 with SHA-384 for reports.
//!
//! Two implementations that check the same: the portable one, which also compiles to WebAssembly, and with the feature `aws-lc` the one
//! that TLS uses, several times faster.

/// A signature that does not hold, or a key that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadSignature;

#[cfg(feature = "aws-lc")]
pub(super) use aws_lc::{verify_ecdsa_p384, verify_rsa_pss};
#[cfg(not(feature = "aws-lc"))]
pub(super) use portable::{verify_ecdsa_p384, verify_rsa_pss};

#[cfg(any(test, not(feature = "aws-lc")))]
mod portable {
    use p384::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
    use rsa::{RsaPublicKey, pkcs1::DecodeRsaPublicKey as _, pss, signature::Verifier as _};
    use sha2::{Digest as _, Sha384};

    use super::BadSignature;

    /// `key`: PKCS#1, DER. MGF1 with SHA-384 and a salt of 48 bytes.
    pub(in super::super) fn verify_rsa_pss(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let key = RsaPublicKey::from_pkcs1_der(key).map_err(|_| BadSignature)?;
        let signature = pss::Signature::try_from(signature).map_err(|_| BadSignature)?;
        pss::VerifyingKey::<Sha384>::new(key).verify(message, &signature).map_err(|_| BadSignature)
    }

    /// `key`: SEC1 point. `r`, `s`: big-endian.
    pub(in super::super) fn verify_ecdsa_p384(key: &[u8], message: &[u8], r: &[u8; 48], s: &[u8; 48]) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| BadSignature)?;
        let signature = Signature::from_scalars(*r, *s).map_err(|_| BadSignature)?;
        key.verify_prehash(&Sha384::digest(message), &signature).map_err(|_| BadSignature)
    }
}

#[cfg(feature = "aws-lc")]
mod aws_lc {
    use webpki::aws_lc_rs::{ECDSA_P384_SHA384, RSA_PSS_2048_8192_SHA384_LEGACY_KEY};

    use super::BadSignature;

    /// `key`: PKCS#1, DER. MGF1 with SHA-384 and a salt of 48 bytes.
    pub(in super::super) fn verify_rsa_pss(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        RSA_PSS_2048_8192_SHA384_LEGACY_KEY.verify_signature(key, message, signature).map_err(|_| BadSignature)
    }

    /// `key`: SEC1 point. `r`, `s`: big-endian.
    pub(in super::super) fn verify_ecdsa_p384(key: &[u8], message: &[u8], r: &[u8; 48], s: &[u8; 48]) -> Result<(), BadSignature> {
        ECDSA_P384_SHA384.verify_signature(key, message, &der_signature(r, s)).map_err(|_| BadSignature)
    }

    /// `SEQUENCE { INTEGER r, INTEGER s }`, at most 104 bytes.
    fn der_signature(r: &[u8; 48], s: &[u8; 48]) -> Vec<u8> {
        let body = [der_integer(r), der_integer(s)].concat();
        let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
        [&[0x30, length], body.as_slice()].concat()
    }

    fn der_integer(number: &[u8; 48]) -> Vec<u8> {
        let leading_zeros = number.iter().take_while(|byte| **byte == 0).count().min(47);
        let (_, digits) = number.split_at(leading_zeros);
        let sign: &[u8] = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
        let length = u8::try_from(sign.len() + digits.len()).unwrap_or(u8::MAX);
        [&[0x02, length], sign, digits].concat()
    }
}
