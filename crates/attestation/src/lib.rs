//! Evidence of a confidential VM: its formats, its cryptographic verification and its appraisal.
//!
//! ```text
//! bytes ── Evidence::parse_json / Attestation::decode ──▶ Evidence (unverified)
//!                                                            │ + collateral, clock, policy, trust anchors
//!                                                            ▼
//!                                       Verifier::verify ──▶ VerifiedEvidence (cannot be made otherwise)
//! ```
//! Pure: the clock and the vendors' papers are arguments. A dstack guest on TDX is verified whole by [`Verifier::verify`]. The bare
//! evidence of every platform has a [`PlatformVerifier`], one module each; [`Verifier::verify_platform`] puts it under the same policy.

mod bounded;
mod cbor;
pub mod cca;
mod certificate_chain;
mod certificates;
mod checks;
mod cloud_image;
mod collateral;
mod crypto;
mod dcap;
mod digest;
mod envelope;
mod envelope_msgpack;
mod envelope_scale;
mod error;
mod evidence;
pub mod gpu;
mod identity;
mod image;
pub mod nitro;
mod platform;
mod policy;
mod policy_document;
mod public_key;
mod quote;
mod remembered_reference;
#[cfg(feature = "remember-signatures")]
mod remembered_signatures;
mod report_data;
mod revocation;
pub mod sev_snp;
mod sgx;
mod tcb_signer;
mod tdx;
pub mod tpm;
mod trust;
mod verified;
mod verify;
mod verify_snp;

pub use cbor::CborError;
pub use certificates::{CertificatesError, parse_certificate, parse_certificates, parse_revocation_list};
pub use checks::{Check, CheckOutcome, CheckReport};
pub use cloud_image::{CloudImageError, aws_boot_pcr_digest, gcp_uki_authenticode};
pub use collateral::{CollateralError, Endorsements, QuoteCollateral};
#[cfg(feature = "aws-lc")]
pub use crypto::P256_SHA256;
pub use digest::sha256_of_parts;
pub use envelope::{Attestation, Envelope, EnvelopeError, MAX_ENVELOPE_BYTES, PlatformEvidence};
pub use error::{Reason, TdAttributeFault, VerifyError};
pub use evidence::{Evidence, EvidenceError, GuestEvidence, MAX_EVIDENCE_BYTES};
pub use identity::{ClaimError, Claims, KeyProvider, MrScope, device_id, mr_aggregated, mr_system};
pub use image::{AcpiSource, DocumentReference, ImageBindingError, ImageReference, LaunchRegisters, bound_measurement};
pub use platform::{Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, VerifiedPlatform};
pub use policy::{DebugRule, ImageRule, ModuleRule, Policy, TcbStatus};
pub use policy_document::{PolicyError, PolicyProblem};
pub use quote::{EnclaveFields, PckChain, PckIssuer, QuoteError, TdFields, UnverifiedQuote, UnverifiedSgxQuote};
pub use remembered_reference::RememberedReference;
pub use report_data::{ContentType, ReportData, report_data};
pub use sgx::SgxVerifier;
pub use tdx::TdxVerifier;
pub use trust::{Anchor, AnchorKind, TrustAnchorError, TrustAnchors, Vendor};
pub use verified::{VerifiedEvidence, VerifiedQuote};
pub use verify::Verifier;
