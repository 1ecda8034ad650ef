//! Whose signature a verdict rests on.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Intel's SGX provisioning root, valid until 2049.
const INTEL_ROOT_DER: &[u8] = include_bytes!("../roots/intel-sgx-root-ca.der");

/// Why a certificate cannot be an anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustAnchorError {
    /// It is the vendor's own root: a simulated verdict for genuine hardware makes no sense.
    #[error("the simulated root is the vendor's genuine root")]
    IsGenuine,
    /// Not one certificate.
    #[error("the simulated root is not a certificate")]
    NotACertificate,
}

/// Which root a verification ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnchorKind {
    /// Intel's root, built in.
    Intel,
    /// A root configured under `[danger]`: nothing about hardware is proven.
    Simulated {
        /// SHA-256 of the root's DER.
        fingerprint: [u8; 32],
    },
}

impl AnchorKind {
    /// Whether this is not a hardware vendor's root.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(self, Self::Simulated { .. })
    }
}

impl fmt::Display for AnchorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intel => f.write_str("Intel SGX Root CA (built in)"),
            Self::Simulated { fingerprint } => write!(f, "simulated vendor root, SHA-256 {}", hex::encode(fingerprint)),
        }
    }
}

/// The roots a verifier accepts: Intel's, and whatever was added under the word `danger`.
#[derive(Debug, Clone, Default)]
pub struct TrustAnchors {
    simulated: Option<Vec<u8>>,
}

impl TrustAnchors {
    /// Only the hardware vendors' roots.
    #[must_use]
    pub fn hardware() -> Self {
        Self::default()
    }

    /// Also accepts evidence of a software TEE whose root is `der`. Such evidence proves nothing about hardware and is marked simulated.
    ///
    /// `der`: one certificate. From configuration, trusted.
    pub fn danger_simulated_root(mut self, der: Vec<u8>) -> Result<Self, TrustAnchorError> {
        if der == INTEL_ROOT_DER {
            return Err(TrustAnchorError::IsGenuine);
        }
        if der.first() != Some(&0x30) || der.len() > 8192 {
            return Err(TrustAnchorError::NotACertificate);
        }
        self.simulated = Some(der);
        Ok(self)
    }

    /// Whether a simulated root is configured.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.simulated.is_some()
    }

    /// The anchor that the certificate `der` is, if it is one of these. Says nothing about anybody's signature.
    #[must_use]
    pub fn find(&self, der: &[u8]) -> Option<AnchorKind> {
        match &self.simulated {
            _ if der == INTEL_ROOT_DER => Some(AnchorKind::Intel),
            Some(root) if der == root => Some(AnchorKind::Simulated { fingerprint: Sha256::digest(root).into() }),
            _ => None,
        }
    }

    /// The anchor to verify against, chosen by the root the collateral claims. A wrong claim only makes verification fail.
    pub(crate) fn select(&self, is_claimed: impl Fn(&[u8]) -> bool) -> (AnchorKind, Vec<u8>) {
        match &self.simulated {
            Some(root) if is_claimed(root) => (AnchorKind::Simulated { fingerprint: Sha256::digest(root).into() }, root.clone()),
            _ => (AnchorKind::Intel, INTEL_ROOT_DER.to_vec()),
        }
    }
}
