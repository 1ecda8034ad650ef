//! AMD SEV-SNP: the launch digest that a firmware, a kernel and the shape of a VM must produce.
//!
//! ```text
//! OVMF.amdsev.fd ── SevFirmware::parse ─┐
//! kernel, initrd, command line ── KernelHashes ─┼─ launch_digest(…, SnpShape) ──▶ MEASUREMENT of the report
//! measurement.snp.cbor ── SnpImageMeasurement ──┘
//! ```
//! The digest covers, in this order: the firmware's pages, the pages of its SEV metadata (among them the hashes of kernel, initrd and
//! command line), and the initial registers of every vCPU. Unlike on TDX, memory size, devices and ACPI tables are not measured.
//! `SPEC.md` of this crate has the layouts. Sources: AMD SEV-SNP Firmware ABI (56860) chapter 8.17, APM volume 2 appendix B.

mod cpu;
mod document;
mod firmware;
mod kernel_hashes;
mod launch;
mod vmsa;

pub use cpu::{CpuSignature, UnknownCpuModel};
pub use document::{SnpDocumentError, SnpImageFiles, SnpImageMeasurement};
pub use firmware::{Section, SectionKind, SevFirmware, SevFirmwareError};
pub use kernel_hashes::KernelHashes;
pub use launch::{GuestFeatures, SnpLaunchError, SnpShape, Vmm, launch_digest, ovmf_hash};
