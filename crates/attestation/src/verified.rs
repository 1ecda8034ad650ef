//! Evidence that was verified.

use dstack_event_log::{Digest384, EventLog};
use dstack_manifest::{OsImageHash, VmConfig};

use crate::{AnchorKind, CheckReport, Claims, MrScope, ReportData, TdFields, VerifiedPlatform, identity, policy::TcbStatus};

/// The result of [`Verifier::verify_quote`](crate::Verifier::verify_quote): a genuine TDX quote of an acceptable TD, without its log.
///
/// It says which machine and what was measured, not what that means. No authorization accepts it.
#[derive(Debug, Clone)]
pub struct VerifiedQuote {
    pub(crate) fields: TdFields,
    pub(crate) platform: VerifiedPlatform,
    pub(crate) tcb_status: TcbStatus,
    pub(crate) report: CheckReport,
}

impl VerifiedQuote {
    /// The quote's registers and fields.
    #[must_use]
    pub fn fields(&self) -> &TdFields {
        &self.fields
    }

    /// What the hardware says, as every platform gives it.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }

    /// TCB status of platform and quoting enclave together.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// Advisories that apply.
    #[must_use]
    pub fn advisory_ids(&self) -> &[String] {
        &self.platform.advisory_ids
    }

    /// The root everything rests on.
    #[must_use]
    pub fn anchor(&self) -> &AnchorKind {
        &self.platform.anchor
    }

    /// The checks made.
    #[must_use]
    pub fn report(&self) -> &CheckReport {
        &self.report
    }
}

/// The result of [`Verifier::verify`](crate::Verifier::verify), which alone can build it.
///
/// It says who signed ([`anchor`](Self::anchor)), in which state the platform is ([`tcb_status`](Self::tcb_status)), and what the
/// VM is. Whether such a VM may have anything is authorization's decision.
///
/// ```compile_fail,E0451
/// # fn forge(honest: dstack_attestation::VerifiedEvidence) -> dstack_attestation::VerifiedEvidence {
/// dstack_attestation::VerifiedEvidence { os_image_hash: None, ..honest }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct VerifiedEvidence {
    pub(crate) fields: TdFields,
    pub(crate) platform: VerifiedPlatform,
    pub(crate) tcb_status: TcbStatus,
    pub(crate) fmspc: [u8; 6],
    pub(crate) log: EventLog,
    pub(crate) claims: Claims,
    pub(crate) vm_config: Option<VmConfig>,
    pub(crate) os_image_hash: Option<OsImageHash>,
    pub(crate) acpi_tables_computed: bool,
    pub(crate) report: CheckReport,
    pub(crate) verified_at: u64,
}

impl VerifiedEvidence {
    /// Name of the platform in policies: `dstack-tdx`.
    #[must_use]
    pub fn tee_variant(&self) -> &'static str {
        "dstack-tdx"
    }

    /// Identity events.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The OS image that MRTD and RTMR0 to RTMR2 prove; `None` if that was not checked.
    #[must_use]
    pub fn os_image_hash(&self) -> Option<&OsImageHash> {
        self.os_image_hash.as_ref()
    }

    /// Whether the ACPI tables in RTMR0 are those of a known machine, rather than whatever the log names.
    #[must_use]
    pub fn acpi_tables_computed(&self) -> bool {
        self.acpi_tables_computed
    }

    /// See [`identity::mr_system`].
    #[must_use]
    pub fn mr_system(&self, scope: MrScope) -> [u8; 32] {
        let provider = match scope {
            MrScope::BootTime => None,
            MrScope::Runtime => self.claims.key_provider.as_ref().map(|provider| provider.raw.as_slice()),
        };
        identity::mr_system(&self.fields, provider)
    }

    /// See [`identity::mr_aggregated`]. The boot-time form exists once `boot-mr-done` was measured.
    #[must_use]
    pub fn mr_aggregated(&self, scope: MrScope) -> Option<[u8; 32]> {
        let rtmr3: Digest384 = match scope {
            MrScope::BootTime => self.log.boot_time_rtmr3()?,
            MrScope::Runtime => *self.fields.rtmr.get(3)?,
        };
        Some(identity::mr_aggregated(&self.fields, &rtmr3))
    }

    /// `SHA-256(PPID)` of the verified PCK certificate: the same for all TDs of one machine.
    #[must_use]
    pub fn device_id(&self) -> [u8; 32] {
        identity::device_id(&self.platform)
    }

    /// TCB status of platform and quoting enclave together. Never `Revoked`.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// Advisories that apply, of platform and quoting enclave.
    #[must_use]
    pub fn advisory_ids(&self) -> &[String] {
        &self.platform.advisory_ids
    }

    /// What the hardware says, as every platform gives it.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }

    /// Platform model.
    #[must_use]
    pub fn fmspc(&self) -> &[u8; 6] {
        &self.fmspc
    }

    /// Lower of the evaluation data numbers of TCB information and quoting enclave identity.
    #[must_use]
    pub fn tcb_evaluation_data_number(&self) -> u32 {
        self.platform.tcb_evaluation_data_number.unwrap_or_default()
    }

    /// The quote's registers and fields.
    #[must_use]
    pub fn fields(&self) -> &TdFields {
        &self.fields
    }

    /// What the requester put in.
    #[must_use]
    pub fn report_data(&self) -> &ReportData {
        &self.fields.report_data
    }

    /// The replayed log.
    #[must_use]
    pub fn event_log(&self) -> &EventLog {
        &self.log
    }

    /// The VM's configuration, if the evidence had one. Only what the registers prove is proven.
    #[must_use]
    pub fn vm_config(&self) -> Option<&VmConfig> {
        self.vm_config.as_ref()
    }

    /// The root everything rests on.
    #[must_use]
    pub fn anchor(&self) -> &AnchorKind {
        &self.platform.anchor
    }

    /// The root is not a hardware vendor's: nothing about hardware is proven.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.platform.anchor.is_simulated()
    }

    /// Every check with its outcome.
    #[must_use]
    pub fn report(&self) -> &CheckReport {
        &self.report
    }

    /// Unix seconds of the clock given to the verification.
    #[must_use]
    pub fn verified_at(&self) -> u64 {
        self.verified_at
    }

    /// Unix seconds until which the collateral allows this verdict.
    #[must_use]
    pub fn collateral_expires_at(&self) -> u64 {
        self.platform.valid_until.unwrap_or_default()
    }
}
