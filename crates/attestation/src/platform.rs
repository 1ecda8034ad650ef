//! What all platforms have in common: one trait, one result, one shape of refusal.
//!
//! ```text
//! evidence (bytes of the hardware) ─┐
//! endorsements (vendor's papers)    ├─ PlatformVerifier::verify ─▶ VerifiedPlatform: who signed, and what the hardware says
//! anchors, clock                    ┘                │                      │
//!                                                Refusal                Policy::appraise: is that acceptable?
//! ```
//! [`PlatformVerifier::verify`] decides only whether the evidence is genuine and the vendor stands behind it today. Debug mode, an
//! old TCB, a foreign machine are facts of genuine evidence; [`Policy`](crate::Policy) decides about them.

use std::{borrow::Cow, fmt};

use crate::{AnchorKind, Endorsements, TcbStatus, TdFields, TrustAnchors, Vendor};

/// A kind of hardware (or hypervisor) that signs evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Platform {
    /// Intel TDX virtual machine.
    Tdx,
    /// Intel SGX enclave.
    Sgx,
    /// AMD SEV-SNP virtual machine.
    SevSnp,
    /// AWS Nitro Enclave.
    NitroEnclave,
    /// AWS instance with NitroTPM.
    NitroTpm,
    /// TPM 2.0, as clouds give it to virtual machines.
    Tpm,
    /// NVIDIA GPU in confidential computing mode.
    NvidiaGpu,
    /// Arm CCA realm.
    ArmCca,
}

impl Platform {
    /// Every platform there is a verifier for.
    pub const ALL: [Self; 8] =
        [Self::Tdx, Self::Sgx, Self::SevSnp, Self::NitroEnclave, Self::NitroTpm, Self::Tpm, Self::NvidiaGpu, Self::ArmCca];

    /// Stable name, as in JSON and policy documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Sgx => "sgx",
            Self::SevSnp => "sev-snp",
            Self::NitroEnclave => "nitro-enclave",
            Self::NitroTpm => "aws-nitro-tpm",
            Self::Tpm => "tpm",
            Self::NvidiaGpu => "nvidia-gpu",
            Self::ArmCca => "arm-cca",
        }
    }

    /// Whose root vouches for it; `None` for a TPM, whose maker differs by cloud.
    #[must_use]
    pub const fn vendor(self) -> Option<Vendor> {
        match self {
            Self::Tdx | Self::Sgx => Some(Vendor::Intel),
            Self::SevSnp => Some(Vendor::Amd),
            Self::NitroEnclave | Self::NitroTpm => Some(Vendor::Aws),
            Self::NvidiaGpu => Some(Vendor::Nvidia),
            Self::ArmCca => Some(Vendor::Arm),
            Self::Tpm => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a verification gets besides the evidence. All of it comes from the caller; nothing is fetched and no clock is read.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Roots that are trusted.
    pub anchors: &'a TrustAnchors,
    /// The vendor's papers for this evidence, from anywhere, unverified.
    pub endorsements: &'a Endorsements,
    /// Unix seconds at which everything must be valid.
    pub now: u64,
}

/// The verifier of one platform. Total: any bytes give an answer, in bounded time and memory.
pub trait PlatformVerifier {
    /// Evidence of the platform as its attester sends it, unverified. Bytes where the platform signs one blob.
    type Evidence: ?Sized;

    /// The platform.
    fn platform(&self) -> Platform;

    /// Verifies that `evidence` is genuine: its signature, and every certificate and endorsement up to a root of `context.anchors`,
    /// with dates and revocation at `context.now`.
    ///
    /// Errors: the first link of that chain that does not hold.
    fn verify(&self, evidence: &Self::Evidence, context: &Context<'_>) -> Result<VerifiedPlatform, Refusal>;
}

/// Genuine evidence of one platform: who signed, and what the hardware says. Built only by a [`PlatformVerifier`].
///
/// Says nothing about whether that is acceptable: see [`Policy::appraise`](crate::Policy::appraise).
///
/// ```compile_fail,E0451
/// # fn forge(honest: dstack_attestation::VerifiedPlatform) -> dstack_attestation::VerifiedPlatform {
/// dstack_attestation::VerifiedPlatform { debug: Some(false), ..honest }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPlatform {
    pub(crate) platform: Platform,
    pub(crate) anchor: AnchorKind,
    pub(crate) report_data: Vec<u8>,
    pub(crate) registers: Vec<Register>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) tcb_status: Option<TcbStatus>,
    pub(crate) advisory_ids: Vec<String>,
    pub(crate) tcb_evaluation_data_number: Option<u32>,
    pub(crate) hardware_id: Option<Vec<u8>>,
    pub(crate) debug: Option<bool>,
    pub(crate) issued_at: Option<u64>,
    pub(crate) endorsed_at: Option<u64>,
    pub(crate) valid_until: Option<u64>,
    pub(crate) passed: Vec<Passed>,
    pub(crate) not_checked: Vec<NotChecked>,
    /// The typed form of what a TDX quote says.
    pub(crate) td: Option<Box<VerifiedTd>>,
}

impl VerifiedPlatform {
    /// A result that says nothing yet beyond its signer; the platform's verifier fills in the rest.
    pub(crate) fn new(platform: Platform, anchor: AnchorKind) -> Self {
        Self {
            platform,
            anchor,
            report_data: Vec::new(),
            registers: Vec::new(),
            facts: Vec::new(),
            tcb_status: None,
            advisory_ids: Vec::new(),
            tcb_evaluation_data_number: None,
            hardware_id: None,
            debug: None,
            issued_at: None,
            endorsed_at: None,
            valid_until: None,
            passed: Vec::new(),
            not_checked: Vec::new(),
            td: None,
        }
    }

    /// The platform.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The root the evidence rests on.
    #[must_use]
    pub fn anchor(&self) -> &AnchorKind {
        &self.anchor
    }

    /// Bytes the requester put under the signature: report data (TDX, SGX, SNP: 64 bytes), qualifying data (TPM), nonce (Nitro, GPU),
    /// challenge (CCA). Empty if the evidence binds nothing.
    #[must_use]
    pub fn report_data(&self) -> &[u8] {
        &self.report_data
    }

    /// Measurements, in the platform's order.
    #[must_use]
    pub fn registers(&self) -> &[Register] {
        &self.registers
    }

    /// Value of the register of that name.
    #[must_use]
    pub fn register(&self, name: &str) -> Option<&[u8]> {
        self.registers.iter().find(|register| register.name == name).map(|register| register.value.as_slice())
    }

    /// What else the evidence says, for people and for policies of the platform.
    #[must_use]
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Text of the fact of that name.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str())
    }

    /// State of the platform's firmware by the vendor's papers; `None` where the vendor gives none. Never `Revoked`.
    #[must_use]
    pub fn tcb_status(&self) -> Option<TcbStatus> {
        self.tcb_status
    }

    /// Advisories that apply.
    #[must_use]
    pub fn advisory_ids(&self) -> &[String] {
        &self.advisory_ids
    }

    /// Edition of the vendor's TCB papers, where there is such a number.
    #[must_use]
    pub fn tcb_evaluation_data_number(&self) -> Option<u32> {
        self.tcb_evaluation_data_number
    }

    /// Identity of the machine, raw: PPID (TDX, SGX), CHIP_ID (SNP), module id (Nitro), instance id (CCA). `None` if masked or absent.
    #[must_use]
    pub fn hardware_id(&self) -> Option<&[u8]> {
        self.hardware_id.as_deref()
    }

    /// Whether the host can look inside; `None` where the platform does not say.
    #[must_use]
    pub fn debug(&self) -> Option<bool> {
        self.debug
    }

    /// Unix seconds at which the evidence was made, where it says so.
    #[must_use]
    pub fn issued_at(&self) -> Option<u64> {
        self.issued_at
    }

    /// Unix seconds of issue of the oldest of the vendor's papers that has to be renewed.
    #[must_use]
    pub fn endorsed_at(&self) -> Option<u64> {
        self.endorsed_at
    }

    /// Unix seconds until which every certificate and endorsement is valid.
    #[must_use]
    pub fn valid_until(&self) -> Option<u64> {
        self.valid_until
    }

    /// The links that hold, in order.
    #[must_use]
    pub fn passed(&self) -> &[Passed] {
        &self.passed
    }

    /// What was not checked, and why; a reader decides what that is worth.
    #[must_use]
    pub fn not_checked(&self) -> &[NotChecked] {
        &self.not_checked
    }
}

/// What only a TDX quote has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifiedTd {
    /// Measured fields.
    pub(crate) fields: TdFields,
    /// Platform model.
    pub(crate) fmspc: [u8; 6],
    /// TCB status of platform and quoting enclave together.
    pub(crate) tcb_status: TcbStatus,
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Stable lower-case name: `mrtd`, `rtmr0`, `measurement`, `host_data`, `pcr4`.
    pub name: Cow<'static, str>,
    /// Its bytes.
    pub value: Vec<u8>,
}

impl Register {
    /// A register with a copy of `value`.
    pub(crate) fn new(name: impl Into<Cow<'static, str>>, value: &[u8]) -> Self {
        Self { name: name.into(), value: value.to_vec() }
    }
}

/// Something signed that is not a measurement: a version, a policy bit, a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Stable lower-case name: `fmspc`, `vmpl`, `guest_svn`.
    pub name: Cow<'static, str>,
    /// Text, hex for bytes.
    pub value: String,
}

impl Fact {
    /// A fact with the text of `value`.
    pub(crate) fn new(name: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        Self { name: name.into(), value: value.to_string() }
    }
}

/// A link in the chain from evidence to root, in the order in which they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Link {
    /// The bytes have the platform's structure.
    Format,
    /// The chain of the attestation key ends in a trusted root, and each certificate is signed by the next and within its dates.
    CertificateChain,
    /// No certificate is revoked, and the lists that say so are signed and current.
    Revocation,
    /// The vendor's papers (TCB information, identities) are signed, within their dates, and of this platform.
    Endorsements,
    /// The component that holds the attestation key (quoting enclave, VCEK of this chip, AK of this TPM) is the vendor's and vouches for the key.
    AttestationKey,
    /// The attestation key signed exactly this evidence.
    Signature,
    /// The vendor knows the platform's firmware versions and has not revoked them.
    Tcb,
    /// The guest was not launched in a way that makes its evidence worthless.
    Attributes,
    /// The evidence was made for this challenge.
    ReportData,
    /// The log that comes with the evidence gives the signed registers.
    EventLog,
}

impl Link {
    /// Stable name, for scripts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::CertificateChain => "certificate-chain",
            Self::Revocation => "revocation",
            Self::Endorsements => "endorsements",
            Self::AttestationKey => "attestation-key",
            Self::Signature => "signature",
            Self::Tcb => "tcb",
            Self::Attributes => "attributes",
            Self::ReportData => "report-data",
            Self::EventLog => "event-log",
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not the structure it should be.
    #[error("the structure is malformed")]
    Malformed,
    /// A signature, hash or binding does not hold.
    #[error("a signature or binding is invalid")]
    Invalid,
    /// The chain ends in a root that is not trusted.
    #[error("the certificate chain does not end in the trust anchor")]
    OtherRoot,
    /// Some part is past its date.
    #[error("an endorsement or a certificate has expired")]
    Expired,
    /// Some part is from the future.
    #[error("an endorsement or a certificate is not valid yet")]
    NotYetValid,
    /// A certificate or the platform's TCB level was revoked.
    #[error("a certificate or the TCB level is revoked")]
    Revoked,
    /// The platform is older than every level the vendor knows.
    #[error("the platform matches no TCB level")]
    UnknownTcb,
    /// Papers of another platform model or machine.
    #[error("the endorsements are of another platform")]
    OtherPlatform,
    /// Firmware that is not the vendor's.
    #[error("the platform's firmware module is not the vendor's")]
    Module,
    /// A certificate or endorsement that is needed was not given.
    #[error("a certificate or endorsement is missing")]
    Missing,
    /// Made for another challenge.
    #[error("the evidence answers another challenge")]
    OtherChallenge,
    /// Genuine, and worthless: attributes that are never acceptable.
    #[error("the guest was launched with attributes that are never acceptable")]
    Forbidden,
    /// A form of evidence this release does not verify.
    #[error("this form of evidence is not implemented")]
    NotImplemented,
}

/// Evidence that is not genuine, or that the vendor does not stand behind: the first link that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{platform} {link}: {fault} ({detail})")]
pub struct Refusal {
    /// Whose verifier refuses.
    pub platform: Platform,
    /// The link.
    pub link: Link,
    /// What is wrong with it.
    pub fault: Fault,
    /// One line for the operator, at most 300 characters: operands, offsets, the library's words.
    pub detail: String,
}

impl Refusal {
    /// A refusal with the text of `detail` on one line, cut after 300 characters.
    pub(crate) fn new(platform: Platform, link: Link, fault: Fault, detail: impl fmt::Display) -> Self {
        let text = detail.to_string();
        let detail = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        Self { platform, link, fault, detail }
    }
}

/// A link that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The link.
    pub link: Link,
    /// What was found.
    pub found: String,
}

/// A link that could not be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChecked {
    /// The link.
    pub link: Link,
    /// Why.
    pub why: String,
}
