//! Fetch and cache what hardware vendors say about their platforms.
//!
//! [`CollateralSource`] speaks to Intel's provisioning certification service or to any cache with the same paths;
//! [`CollateralCache`] keeps answers. Nothing here is verified: what arrives is signed by the vendor, and
//! `dstack_attestation::Verifier` checks that.

mod cache;
mod source;

pub use cache::CollateralCache;
pub use source::{CollateralSource, FetchError, INTEL_PCS_URL};
