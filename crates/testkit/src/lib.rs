//! What several crates' tests stand on: boot files made of a few bytes, and software TDs with genuine simulated quotes.
//!
//! Only ever a dev-dependency (`cargo xtask check-floors`). It panics where a test would.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

pub mod boot_files;
#[cfg(feature = "software-snp")]
pub mod software_snp;
#[cfg(feature = "software-tee")]
pub mod software_td;
#[cfg(feature = "software-tee")]
pub mod software_tee;
#[cfg(feature = "swtpm")]
pub mod swtpm;
#[cfg(feature = "vendor-services")]
pub mod vendor_services;
