//! From bytes of any kind of evidence to a verdict for people and scripts.
//!
//! ```text
//! bytes ──Subject::recognise──▶ Subject (unverified) ─┐
//! roots, policy, expectations, papers, clock ─ Question ┴─ judge ─▶ Verdict: word, checks, claims, what it rests on
//! ```
//! Pure: nothing is fetched, no clock is read. The `dstack verify` command and the WebAssembly package are thin shells around it.

mod certificate;
mod containers;
mod document;
mod encoding;
mod gcp;
mod guest;
mod hardware;
mod input;
mod judge;
mod nitro;
mod platforms;
mod question;
mod snp;
mod subject;
mod td;
mod verdict;

pub use certificate::{CertificateError, EvidenceCertificate};
pub use encoding::parse_hex;
pub use input::{InputError, MAX_INPUT_BYTES, binary_form, guess_platform};
pub use judge::{judge, judge_by, refuse_before_papers};
pub use question::{Challenge, ChallengeField, Expectations, Question};
pub use subject::{GcpEvidence, Kind, NitroEvidence, Saved, Subject};
pub use verdict::{Anchor, CheckLine, Claim, Claims, Identity, Mark, Verdict, Word};
