//! NVIDIA GPUs in confidential computing mode: an SPDM report of the GPU's measurements, and the chain of the key that signed it.
//!
//! ```text
//! GET_MEASUREMENTS request and response, certificate chain ── GpuEvidence ──┐
//! NVIDIA's root, clock                                                      ├─ NvidiaGpu ──▶ VerifiedReport: measurements, versions, nonce
//!                                                                           ┘
//! ```
//! [`NvidiaGpu`] decides whether a genuine GPU made the report. It does not compare the measurements with NVIDIA's reference values for
//! driver and VBIOS, and asks no revocation service beyond the lists it is given; its result says so. Answers of NVIDIA's own verifiers
//! (tokens) are no evidence here.
//! Source: DMTF DSP0274 1.1, sections 10.11 and 10.12; NVIDIA attestation documentation for the opaque data.

mod evidence;
mod opaque;
mod report;
mod verify;

pub use evidence::{GpuEvidence, GpuEvidenceError};
pub use opaque::OpaqueField;
pub use report::{GpuReport, GpuReportError, Measurement};
pub use verify::{NvidiaGpu, VerifiedReport};
