//! The vendor's collateral, from a collateral service (PCCS, or Intel's PCS): cached until it expires, asked for once however many want it.
//!
//! What a stranger sends causes a request only if it holds a PCK certificate chain that ends in a trusted root ([`Platform`]), so the
//! service is asked about platform models that exist, and the cache holds at most [`CollateralLimits::platforms`] of them.

mod client;
mod error;
mod pcs;
mod platform;
mod slots;

pub(crate) use client::Held;
pub use client::{CollateralClient, CollateralCounters, CollateralLimits};
pub use error::FetchError;
pub use platform::{Platform, PlatformError};
