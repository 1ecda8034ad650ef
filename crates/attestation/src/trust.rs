//! Whose signature a verdict rests on.

use std::{borrow::Cow, fmt};

use sha2::{Digest as _, Sha256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// Largest certificate that may become an anchor.
const MAX_CERTIFICATE_BYTES: usize = 8192;

/// Who makes a platform and vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Vendor {
    /// TDX and SGX.
    Intel,
    /// SEV-SNP.
    Amd,
    /// Nitro Enclaves and NitroTPM.
    Aws,
    /// The vTPM of Google's cloud.
    Google,
    /// The vTPM of Azure.
    Microsoft,
    /// Confidential GPUs.
    Nvidia,
    /// Confidential Compute Architecture: no common root, makers of chips and boards have their own.
    Arm,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intel => "Intel",
            Self::Amd => "AMD",
            Self::Aws => "AWS",
            Self::Google => "Google",
            Self::Microsoft => "Microsoft",
            Self::Nvidia => "NVIDIA",
            Self::Arm => "Arm",
        })
    }
}

/// The roots that come with this crate: vendor, name, DER. Their origin is in `roots/PROVENANCE.md`.
const BUILT_IN: &[(Vendor, &str, &[u8])] = &[
    (Vendor::Intel, "Intel SGX Root CA", include_bytes!("../roots/intel-sgx-root-ca.der")),
    (Vendor::Amd, "AMD ARK-Milan", include_bytes!("../roots/amd-ark-milan.der")),
    (Vendor::Amd, "AMD ARK-Genoa", include_bytes!("../roots/amd-ark-genoa.der")),
    (Vendor::Amd, "AMD ARK-Turin", include_bytes!("../roots/amd-ark-turin.der")),
    (Vendor::Aws, "AWS Nitro Enclaves Root G1", include_bytes!("../roots/aws-nitro-enclaves-root-g1.der")),
    (Vendor::Google, "Google EK/AK CA Root", include_bytes!("../roots/google-ek-ak-ca-root.der")),
    (Vendor::Microsoft, "Azure Virtual TPM Root 2023", include_bytes!("../roots/azure-virtual-tpm-root-2023.der")),
    (Vendor::Nvidia, "NVIDIA Device Identity CA", include_bytes!("../roots/nvidia-device-identity-ca.der")),
];

/// Why a certificate cannot be an anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustAnchorError {
    /// It is a vendor's own root: a simulated verdict for genuine hardware makes no sense.
    #[error("the simulated root is {name}, a genuine root")]
    IsGenuine {
        /// Its name.
        name: &'static str,
    },
    /// Not one certificate.
    #[error("the root is not a DER certificate of at most {MAX_CERTIFICATE_BYTES} bytes")]
    NotACertificate,
}

/// Which root a verification ended in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AnchorKind {
    /// A vendor's root that comes with this crate.
    BuiltIn {
        /// Whose.
        vendor: Vendor,
        /// Its name.
        name: &'static str,
    },
    /// A root that the caller put in place of the vendor's built-in ones. What it proves is the caller's knowledge.
    Chosen {
        /// Whose it is said to be.
        vendor: Vendor,
        /// SHA-256 of the root's DER.
        fingerprint: [u8; 32],
    },
    /// A root configured under `[danger]`: nothing about hardware is proven.
    Simulated {
        /// SHA-256 of the root's DER.
        fingerprint: [u8; 32],
    },
}

impl AnchorKind {
    /// Whether this is the root of a software TEE.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(self, Self::Simulated { .. })
    }

    /// Whether this root comes with this crate.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        matches!(self, Self::BuiltIn { .. })
    }
}

impl fmt::Display for AnchorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn { name, .. } => write!(f, "{name} (built in)"),
            Self::Chosen { vendor, fingerprint } => write!(f, "root chosen in place of {vendor}'s, SHA-256 {}", hex::encode(fingerprint)),
            Self::Simulated { fingerprint } => write!(f, "simulated vendor root, SHA-256 {}", hex::encode(fingerprint)),
        }
    }
}

/// A root certificate that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    vendor: Vendor,
    kind: AnchorKind,
    der: Cow<'static, [u8]>,
}

impl Anchor {
    /// What kind of root it is, for verdicts.
    #[must_use]
    pub fn kind(&self) -> &AnchorKind {
        &self.kind
    }

    /// The certificate, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whose evidence it may vouch for.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }
}

/// The roots a verifier accepts: the vendors', those that a caller put in their place, and whatever was added under the word `danger`.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    roots: Vec<Anchor>,
}

impl Default for TrustAnchors {
    fn default() -> Self {
        Self::hardware()
    }
}

impl TrustAnchors {
    /// Only the hardware vendors' roots that come with this crate.
    #[must_use]
    pub fn hardware() -> Self {
        let built_in = |&(vendor, name, der): &(Vendor, &'static str, &'static [u8])| Anchor {
            vendor,
            kind: AnchorKind::BuiltIn { vendor, name },
            der: Cow::Borrowed(der),
        };
        Self { roots: BUILT_IN.iter().map(built_in).collect() }
    }

    /// Takes `ders` in place of every root of `vendor`. A certificate that is one of the built-in ones keeps its name.
    ///
    /// `ders`: one certificate each. From configuration, trusted.
    pub fn replace(mut self, vendor: Vendor, ders: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, TrustAnchorError> {
        self.roots.retain(|root| root.vendor != vendor || root.kind.is_simulated());
        for der in ders {
            must_look_like_certificate(&der)?;
            let kind = genuine(&der).unwrap_or_else(|| AnchorKind::Chosen { vendor, fingerprint: Sha256::digest(&der).into() });
            self.roots.push(Anchor { vendor, kind, der: Cow::Owned(der) });
        }
        Ok(self)
    }

    /// Also accepts evidence of a software TEE whose root is `der`. Such evidence proves nothing about hardware and is marked simulated.
    ///
    /// `der`: one certificate. From configuration, trusted. A root whose common name starts with `ARK-`, as AMD's do, vouches for SEV-SNP
    /// reports; any other for TDX and SGX quotes. A second root replaces the first.
    pub fn danger_simulated_root(mut self, der: Vec<u8>) -> Result<Self, TrustAnchorError> {
        if let Some(AnchorKind::BuiltIn { name, .. }) = genuine(&der) {
            return Err(TrustAnchorError::IsGenuine { name });
        }
        must_look_like_certificate(&der)?;
        self.roots.retain(|root| !root.kind.is_simulated());
        let kind = AnchorKind::Simulated { fingerprint: Sha256::digest(&der).into() };
        let vendor = if is_named_as_of_amd(&der) { Vendor::Amd } else { Vendor::Intel };
        self.roots.push(Anchor { vendor, kind, der: Cow::Owned(der) });
        Ok(self)
    }

    /// Whether a simulated root is configured.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.roots.iter().any(|root| root.kind.is_simulated())
    }

    /// The roots that may vouch for evidence of `vendor`.
    pub fn roots(&self, vendor: Vendor) -> impl Iterator<Item = &Anchor> {
        self.roots.iter().filter(move |root| root.vendor == vendor)
    }

    /// The anchor that the certificate `der` is, if it is one of these. Says nothing about anybody's signature.
    #[must_use]
    pub fn find(&self, der: &[u8]) -> Option<AnchorKind> {
        self.roots.iter().find(|root| *root.der == *der).map(|root| root.kind.clone())
    }

    /// The root of `vendor` to verify against: the first one that the evidence or its endorsements claim, else the first one there is.
    /// A wrong claim only makes verification fail.
    pub(crate) fn select(&self, vendor: Vendor, is_claimed: impl Fn(&[u8]) -> bool) -> Option<&Anchor> {
        self.roots(vendor).find(|root| is_claimed(root.der())).or_else(|| self.roots(vendor).next())
    }
}

fn genuine(der: &[u8]) -> Option<AnchorKind> {
    let (vendor, name, _) = BUILT_IN.iter().find(|(.., built_in)| *built_in == der)?;
    Some(AnchorKind::BuiltIn { vendor: *vendor, name })
}

fn is_named_as_of_amd(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.is_some_and(|name| name.starts_with("ARK-"))
}

fn must_look_like_certificate(der: &[u8]) -> Result<(), TrustAnchorError> {
    if der.first() != Some(&0x30) || der.len() > MAX_CERTIFICATE_BYTES {
        return Err(TrustAnchorError::NotACertificate);
    }
    Ok(())
}
