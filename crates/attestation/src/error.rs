//! Why evidence is not believed.

use dstack_api::UserFacing;
use dstack_event_log::{EventLogError, RegisterMismatch};
use dstack_manifest::{ComposeHash, OsImageHash};

pub use crate::tdx::TdAttributeFault;
use crate::{
    AnchorKind, Check, CheckReport, Fault, ImageBindingError, Link, Platform, QuoteError, Refusal,
    identity::ClaimError,
    policy::TcbStatus,
    sev_snp::{GuestFault, HostDataError, LaunchMismatch},
};

/// The cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Not a TDX quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Signature side.
    #[error("{link}: {fault} ({detail})")]
    Signature {
        /// Which link.
        link: Link,
        /// What is wrong with it.
        fault: Fault,
        /// The verification library's words.
        detail: String,
    },
    /// Genuine, but worthless.
    #[error(transparent)]
    TdAttributes(#[from] TdAttributeFault),
    /// TCB status not accepted by the policy.
    #[error("TCB status {status} is not accepted")]
    TcbStatus {
        /// The status.
        status: TcbStatus,
    },
    /// An advisory that the policy rejects applies.
    #[error("advisory {advisory} applies")]
    Advisory {
        /// Its id.
        advisory: String,
    },
    /// The vendor gives no status, and the policy demands one.
    #[error("the vendor of {platform} gives no TCB status, and the policy demands one")]
    NoTcbStatus {
        /// The platform.
        platform: Platform,
    },
    /// Papers older than an edition.
    #[error("TCB evaluation data number {number} is below {minimum}")]
    TcbEvaluationNumber {
        /// Of the papers.
        number: u32,
        /// Of the policy.
        minimum: u32,
    },
    /// The host can look inside.
    #[error("the guest runs in debug mode: the host can look inside")]
    Debug,
    /// A platform that the policy does not name.
    #[error("platform {platform} is not accepted")]
    Platform {
        /// The platform.
        platform: Platform,
    },
    /// A machine that the policy does not name.
    #[error("{}", id.as_ref().map_or_else(|| "the evidence names no machine".to_owned(), |id| format!("machine {id} is not accepted")))]
    Machine {
        /// SHA-256 of its hardware id.
        id: Option<String>,
    },
    /// The vendor's papers are valid and too old.
    #[error("the vendor's papers are {age} s old, at most {maximum} s are accepted")]
    CollateralAge {
        /// In seconds.
        age: u64,
        /// In seconds.
        maximum: u64,
    },
    /// Nothing says how old the vendor's papers are.
    #[error("the age of the vendor's papers cannot be determined: none that came with this {platform} evidence is dated")]
    CollateralUndated {
        /// Whose evidence.
        platform: Platform,
    },
    /// The evidence is too old.
    #[error("the evidence is {age} s old, at most {maximum} s are accepted")]
    EvidenceAge {
        /// In seconds.
        age: u64,
        /// In seconds.
        maximum: u64,
    },
    /// The evidence is dated ahead of our clock.
    #[error("the evidence is dated {ahead} s ahead of the clock")]
    EvidenceFromFuture {
        /// In seconds.
        ahead: u64,
    },
    /// An image that the policy does not name.
    #[error("os image {os_image_hash} is not accepted")]
    ImageNotAllowed {
        /// The image that the registers prove.
        os_image_hash: OsImageHash,
    },
    /// Another challenge's quote, a replay.
    #[error("the quote's report data is not the expected one")]
    ReportData,
    /// The log is inconsistent in itself.
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The log is not this TD's.
    #[error(transparent)]
    Registers(#[from] RegisterMismatch),
    /// An identity event is malformed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The application's document is another one.
    #[error("app-compose.json has SHA-256 {got}, measured is {}", measured.map_or_else(|| "none".to_owned(), |hash| hash.to_string()))]
    AppCompose {
        /// Hash of the document shown.
        got: ComposeHash,
        /// Measured hash.
        measured: Option<ComposeHash>,
    },
    /// The host launched the TD for something else than the log says.
    #[error("MRCONFIGID does not agree with the measured identity")]
    MrConfigId,
    /// A genuine SNP guest that nobody can rely on.
    #[error(transparent)]
    GuestPolicy(#[from] GuestFault),
    /// The host launched the SNP guest for something else than the document says.
    #[error(transparent)]
    HostData(#[from] HostDataError),
    /// MEASUREMENT is not shown to be that of an OS image.
    #[error(transparent)]
    Launch(#[from] LaunchMismatch),
    /// The configuration is not JSON of the expected form.
    #[error("vm_config is malformed: {reason}")]
    VmConfig {
        /// What the parser met.
        reason: String,
    },
    /// The configuration names its image wrongly.
    #[error(transparent)]
    ImageBinding(#[from] ImageBindingError),
    /// The registers of the image cannot be computed.
    #[error("registers of os image {os_image_hash} cannot be computed: {reason}")]
    ImageReference {
        /// The image.
        os_image_hash: OsImageHash,
        /// Why.
        reason: String,
    },
    /// The tables are part of RTMR0, and neither known nor in the log.
    #[error("the ACPI tables of this machine cannot be computed, and {why}")]
    AcpiTables {
        /// Why the log does not help.
        why: &'static str,
    },
    /// The TD did not boot that image in that shape.
    #[error("{register} is not the one os image {os_image_hash} gives{detail}")]
    ImageRegisters {
        /// The image named.
        os_image_hash: OsImageHash,
        /// First register that differs.
        register: &'static str,
        /// Both values.
        detail: String,
    },
    /// The image the guest measured is not the one the registers prove.
    #[error("the guest measured os image {measured}, the registers are those of {proven}")]
    MeasuredImage {
        /// From the log.
        measured: OsImageHash,
        /// From the configuration, bound by the registers.
        proven: OsImageHash,
    },
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self::Signature { link: refusal.link, fault: refusal.fault, detail: refusal.detail }
    }
}

/// Evidence that is not believed: the check that failed, why, and what held before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {reason}")]
pub struct VerifyError {
    /// The check that failed.
    pub check: Check,
    /// Why.
    pub reason: Box<Reason>,
    /// The checks before it.
    pub report: Box<CheckReport>,
    /// The root the signature side was checked against; `None` before that.
    pub anchor: Option<AnchorKind>,
}

impl UserFacing for VerifyError {
    fn code(&self) -> &'static str {
        match self.check {
            Check::QuoteFormat => "attestation/quote-format",
            Check::QuoteSignature => "attestation/quote-signature",
            Check::TdAttributes => "attestation/td-attributes",
            Check::Debug => "attestation/debug",
            Check::Platform => "attestation/platform",
            Check::TcbPolicy => "attestation/tcb-policy",
            Check::Freshness => "attestation/freshness",
            Check::ReportData => "attestation/report-data",
            Check::RuntimeLog => "attestation/runtime-log",
            Check::BootLog => "attestation/boot-log",
            Check::Identity => "attestation/identity",
            Check::MrConfigId => "attestation/mr-config-id",
            Check::GuestPolicy => "attestation/guest-policy",
            Check::HostData => "attestation/host-data",
            Check::OsImage => "attestation/os-image",
            Check::OsImageEvent => "attestation/os-image-event",
        }
    }

    fn fix(&self) -> String {
        match &*self.reason {
            Reason::Signature { fault: Fault::Expired | Fault::NotYetValid, .. } => {
                "fetch the collateral again and check this machine's clock"
            }
            Reason::Signature { link: Link::Endorsements | Link::Revocation, fault: Fault::Malformed, .. } => {
                "fetch the collateral again, or give it whole and unchanged"
            }
            Reason::Signature { fault: Fault::OtherRoot, .. } => {
                "configure the simulated vendor root under [danger] if this is a software TEE; otherwise do not trust the machine"
            }
            Reason::Signature { fault: Fault::UnknownTcb, .. } | Reason::TcbStatus { .. } | Reason::Advisory { .. } => {
                "update the platform's firmware, or accept its status in the policy"
            }
            Reason::Signature { fault: Fault::OtherPlatform, .. } => "fetch the collateral of the platform in the quote",
            Reason::CollateralAge { .. } => "fetch the collateral again",
            Reason::CollateralUndated { .. } => {
                "give the vendor's revocation list, which is dated, with --chain, or leave max_collateral out of the policy for this platform"
            }
            Reason::EvidenceAge { .. } | Reason::EvidenceFromFuture { .. } => "ask for fresh evidence, and check this machine's clock",
            Reason::NoTcbStatus { .. }
            | Reason::TcbEvaluationNumber { .. }
            | Reason::Platform { .. }
            | Reason::Machine { .. }
            | Reason::ImageNotAllowed { .. } => "name it in the policy if it is meant to be accepted",
            Reason::Debug => "start the guest without debug mode",
            Reason::TdAttributes(_) => "start the VM without debug, migration and service TD, with SEPT_VE_DISABLE",
            Reason::GuestPolicy(_) => "start the VM without debugging and migration agent, and ask for the report at privilege level 0",
            Reason::HostData(_) => "send the mr_config document that the host bound to the launch, and no other",
            Reason::Launch(_) => "use an OS image with a measurement document for SEV-SNP, and its vm_config",
            Reason::ReportData => "ask for a fresh quote over your own challenge",
            Reason::VmConfig { .. } | Reason::ImageBinding(_) => "use an OS image with a measurement document, and its vm_config",
            Reason::AcpiTables { .. } => "accept unchecked ACPI tables in the policy, and send the log with its ACPI events",
            Reason::ImageReference { .. } => "use a VM shape and QEMU version that can be measured",
            Reason::AppCompose { .. } => "ask the application's owner for the app-compose.json that runs",
            _ => "do not trust the machine, and ask its operator for evidence of the VM that runs now",
        }
        .to_owned()
    }
}
