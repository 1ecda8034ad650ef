//! TPM 2.0 quotes, as clouds give them to virtual machines.
//!
//! ```text
//! TPMS_ATTEST, TPMT_SIGNATURE, PCR values, AK certificate, boot log ── TpmQuote ──┐
//! roots of Google and Microsoft, their issuers, clock                              ├─ Tpm ──▶ VerifiedTpmQuote ── check_gcp
//! ```
//! [`Tpm`] decides whether a cloud's TPM made the quote, whether the register values are the signed ones, and whether the boot log gives
//! them. What the registers must be is the caller's; [`check_gcp`] has the rules for dstack on Google's cloud.
//! Source: TPM 2.0 Library Part 2, sections 10.12 and 11.3; TCG PC Client Platform Firmware Profile.

mod attest;
pub mod gcp;
mod quote;
mod reader;
mod signature;
mod verify;

pub use attest::{PcrSelection, Quoted};
pub use gcp::{GCP_FIRMWARE_PCR0, GcpBoot, GcpExpectation, GcpFault, check_gcp};
pub use quote::{PcrEvent, PcrValue, TpmQuote};
pub use reader::TpmFormatError;
pub use signature::QuoteSignature;
pub use verify::{Tpm, VerifiedTpmQuote};
