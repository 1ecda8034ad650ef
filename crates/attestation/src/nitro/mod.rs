//! AWS Nitro: attestation documents of enclaves, and those of instances with a NitroTPM.
//!
//! ```text
//! COSE_Sign1 ── UnverifiedDocument::parse ──┐
//! AWS root, clock                            ├─ NitroEnclave / NitroTpm ──▶ VerifiedDocument ── enclave, instance: what it is to dstack
//! the chain comes inside the document        ┘
//! ```
//! The verifiers decide whether AWS's hypervisor made the document. That an enclave runs in debug mode (PCR0 is zero) or that the document
//! is old ([`check_freshness`]) is told and left to the caller.
//! Source: AWS Nitro Enclaves user guide, "Verifying the root of trust"; EC2 user guide, "NitroTPM attestation document contents".

mod document;
mod enclave;
mod freshness;
mod instance;
mod verify;

pub use document::{DocumentError, DocumentKind, NitroDocument, UnverifiedDocument};
pub use enclave::{device_id, device_id_by_prefix, enclave_digest};
pub use freshness::{MAX_CLOCK_SKEW, MAX_DOCUMENT_AGE, Staleness, check_freshness};
pub use instance::{InstanceBoot, InstanceFault, boot_pcr_digest, check_boot, check_events, check_instance, registers};
pub use verify::{NitroEnclave, NitroTpm, VerifiedDocument};
