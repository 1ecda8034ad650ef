//! Certificates that carry evidence.
//!
//! A certificate binds its key to a TD: the quote's report data is `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`. Facts travel in
//! extensions under 1.3.6.1.4.1.62397.1, each a DER OCTET STRING; the layouts are in `SPEC.md`.
//!
//! - [`CertificateAuthority`]: root, temporary and application authorities, and the leaves they issue;
//! - [`CertRequest`]: what a guest asks to be signed;
//! - [`RaTlsCertificate`]: what a peer showed, unverified, and [`RaTlsCertificate::verify`];
//! - [`collateral`]: the vendor's collateral, from a collateral service, cached;
//! - [`EvidenceVerifier`]: from what a peer shows to verified evidence, each content once;
//! - [`tls`]: rustls configurations for both ends.

mod app_info;
mod authority;
mod certificate;
pub mod collateral;
mod csr;
mod extension;
mod key;
pub mod tls;
mod verdicts;
mod verification;

pub use app_info::AppInfo;
pub use authority::{AuthorityError, CaProfile, CertificateAuthority, LeafProfile, Validity};
pub use certificate::{CertificateError, PeerError, RaTlsCertificate, VerifiedPeer, ra_tls_report_data, ra_tls_report_data_with};
pub use csr::{CertConfig, CertRequest, CsrError, RequestBody};
pub use extension::{Extension, usage};
pub use key::{CertKey, KeyError};
pub use verification::{EvidenceVerifier, Refusal, VerificationLimits};
