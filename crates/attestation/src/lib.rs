//! Evidence of a confidential VM: its formats, its cryptographic verification and its appraisal.
//!
//! ```text
//! bytes ── Evidence::parse_json / Attestation::decode ──▶ Evidence (unverified)
//!                                                            │ + collateral, clock, policy, trust anchors
//!                                                            ▼
//!                                       Verifier::verify ──▶ VerifiedEvidence (cannot be made otherwise)
//! ```
//! Pure: the clock and the vendor's collateral are arguments. Platforms: Intel TDX; the envelopes of other platforms are
//! recognised and refused with [`EnvelopeError::NotImplemented`].

mod checks;
mod collateral;
mod crypto;
mod envelope;
mod envelope_msgpack;
mod envelope_scale;
mod error;
mod evidence;
mod identity;
mod image;
#[allow(dead_code, reason = "the verifiers of further platforms build on it")]
mod platform;
mod policy;
mod quote;
mod report_data;
pub mod sev_snp;
mod tdx;
mod trust;
mod verified;
mod verify;

pub use checks::{Check, CheckOutcome, CheckReport};
pub use collateral::{CollateralError, Endorsements, QuoteCollateral};
pub use envelope::{Attestation, EnvelopeError, MAX_ENVELOPE_BYTES};
pub use error::{Reason, TdAttributeFault, VerifyError};
pub use evidence::{Evidence, EvidenceError};
pub use identity::{ClaimError, Claims, KeyProvider, MrScope, mr_aggregated, mr_system};
pub use image::{AcpiSource, DocumentReference, ImageBindingError, ImageReference, LaunchRegisters, bound_measurement};
pub use platform::{Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, VerifiedPlatform};
pub use policy::{ImageRule, Policy, TcbStatus};
pub use quote::{PckIssuer, QuoteError, TdFields, UnverifiedQuote};
pub use report_data::{ContentType, ReportData, report_data};
pub use trust::{Anchor, AnchorKind, TrustAnchorError, TrustAnchors, Vendor};
pub use verified::{VerifiedEvidence, VerifiedQuote};
pub use verify::Verifier;
