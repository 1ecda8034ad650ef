//! The vendors' papers: Intel's collateral from a collateral service (PCCS, or Intel's PCS), the certificates of AMD's chip keys from its
//! key distribution service. Cached until they expire, asked for once however many want them.
//!
//! What a stranger sends causes a request to Intel's service only if it holds a PCK certificate chain that ends in a trusted root
//! ([`Platform`]), so it is asked about platform models that exist. An SNP report proves nothing before its key's certificate is here, so
//! AMD's service is asked about no more than so many chips in a minute. A cache holds at most [`CollateralLimits::platforms`] of them.

mod cache;
mod chip_keys;
mod client;
mod error;
mod kds;
mod pcs;
mod platform;
mod slots;

use std::fmt;

use dstack_attestation::sev_snp::ChipKeyName;

pub(crate) use cache::Held;
pub use cache::{CollateralCounters, CollateralLimits};
pub use chip_keys::ChipKeyClient;
pub use client::CollateralClient;
pub use error::{FetchError, Service};
pub use platform::{Platform, PlatformError, Tee};

/// What papers are published for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PapersOf {
    /// A platform model of Intel.
    Platform(Platform),
    /// A chip of AMD at one TCB.
    ChipKey(ChipKeyName),
}

impl fmt::Display for PapersOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(platform) => platform.fmt(f),
            Self::ChipKey(name) => name.fmt(f),
        }
    }
}
