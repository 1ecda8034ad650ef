//! Vendors of our own, so that a test can change one thing and sign the rest properly.

use std::path::PathBuf;

use dstack_attestation::{Context, Endorsements, Refusal, TrustAnchors, Vendor};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PublicKeyData, SignatureAlgorithm, SigningKey as _, date_time_ymd,
};

/// 2026-01-15, within the validity of every certificate made here.
pub(crate) const NOW: u64 = 1_768_435_200;

/// A certificate with its key.
pub(crate) struct Party {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) der: Vec<u8>,
}

/// Certificate fields of an authority or of an attestation key, from 2025 to 2027.
fn params(name: &str, is_authority: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    if is_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    } else {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    params
}

impl Party {
    /// A root, of a new P-384 key.
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| ())
    }

    pub(crate) fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = params(name, true);
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn authority(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.issue(params(name, true), &PKCS_ECDSA_P384_SHA384, change)
    }

    /// An attestation key, P-384.
    pub(crate) fn leaf(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.issue(params(name, false), &PKCS_ECDSA_P384_SHA384, change)
    }

    /// An attestation key, P-256.
    pub(crate) fn leaf_p256(&self, name: &str) -> Self {
        self.issue(params(name, false), &PKCS_ECDSA_P256_SHA256, |_| ())
    }

    /// A certificate of somebody else's key.
    pub(crate) fn certify(&self, name: &str, key: &impl PublicKeyData) -> Vec<u8> {
        params(name, false).signed_by(key, &self.issuer()).unwrap().der().to_vec()
    }

    pub(crate) fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        Self { params, key, der }
    }

    /// `r || s` over `message`, with the hash of the key's curve.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let der = self.key.sign(message).unwrap();
        if self.key.algorithm() == &PKCS_ECDSA_P256_SHA256 {
            p256::ecdsa::Signature::from_der(&der).unwrap().to_bytes().to_vec()
        } else {
            p384::ecdsa::Signature::from_der(&der).unwrap().to_bytes().to_vec()
        }
    }
}

/// The anchors of `vendor` replaced by `root`.
pub(crate) fn trusting(vendor: Vendor, root: &[u8]) -> TrustAnchors {
    TrustAnchors::hardware().replace(vendor, [root.to_vec()]).unwrap()
}

/// Verifies at `now` without endorsements.
pub(crate) fn at<T>(now: u64, anchors: &TrustAnchors, verify: impl FnOnce(&Context<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
    verify(&Context { anchors, endorsements: &Endorsements::default(), now })
}

/// A file below `tests/testdata`.
pub(crate) fn must_read(path: &str) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/testdata").join(path);
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every `step`th byte of `bytes` with one bit flipped, a different bit each time.
pub(crate) fn bit_flips(bytes: &[u8], step: usize) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).step_by(step).map(move |at| {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at / step % 8);
        (at, flipped)
    })
}
