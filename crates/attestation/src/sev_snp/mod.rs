//! AMD SEV-SNP: attestation reports, their keys' certificates, and what a report says about a dstack VM.
//!
//! ```text
//! report (1184 bytes) ── UnverifiedReport::parse ──┐
//! VCEK or VLEK, ASK or ASVK, ARK (DER or PEM)       ├─ SevSnp::verify_report ──▶ VerifiedReport ── check_guest, check_host_data,
//! AMD's roots, clock, revocation list if there is one ┘                                        check_launch ──▶ what the VM is
//! ```
//! [`SevSnp`] decides whether AMD's chip made the report. Whether such a guest is acceptable (debug, migration agent, VMPL, old TCB) is a
//! matter of policy: genuine reports of debug guests verify, and say so. Not used here is the `sev` crate: it links device code, does not
//! look at certificate dates, refuses version 2 reports of masked chips, and takes longer.
//! Source: AMD SEV-SNP Firmware ABI (56860) section 7.3, VCEK certificate specification (57230).

mod chain;
mod chip_key;
mod evidence;
mod guest;
mod key_certificate;
mod product;
mod report;
mod revocation;
mod signature;
mod tcb;
mod verify;

pub use chip_key::{ChipKeyFault, ChipKeyName};
pub use evidence::SnpEvidence;
pub use guest::{
    GuestFault, HostDataError, LaunchMismatch, LaunchProof, check_guest, check_host_data, check_launch, device_id, mr_aggregated, mr_system,
};
pub use product::Product;
pub use report::{GuestPolicy, PlatformInfo, ReportError, SigningKey, SnpFields, UnverifiedReport};
pub use tcb::{TcbComponents, TcbVersion};
pub use verify::{SevSnp, VerifiedReport};
