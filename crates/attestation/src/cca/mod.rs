//! Arm Confidential Compute Architecture: attestation tokens of realms.
//!
//! ```text
//! CBOR tag 399 ─┬─ platform token, signed by the chip's key (CPAK) ── challenge = hash of the realm's key ─┐
//!               └─ realm token, signed by that key (RAK) ── measurements, the requester's challenge ◀──────┘
//! ```
//! Arm has no root: who trusts a chip gives its CPAK, or a certificate of it, as a root of
//! [`Vendor::Arm`](crate::Vendor::Arm). [`ArmCca`] decides whether one of these chips made the token. Its result says what firmware runs
//! and in which state of its life the chip is; reference values for them are the caller's.
//! Source: Arm RMM specification (DEN0137) section A7; draft-ffm-rats-cca-token.

mod claims;
mod token;
mod verify;

pub use claims::{Lifecycle, PlatformClaims, RealmClaims, SoftwareComponent};
pub use token::{CcaTokenError, UnverifiedToken};
pub use verify::{ArmCca, VerifiedToken};
