//! Evidence that was verified.

use dstack_event_log::{Digest384, EventLog};
use dstack_manifest::{MrConfigDocument, OsImageHash, VmConfig};

use crate::{
    AnchorKind, CheckReport, Claims, MrScope, ReportData, TdFields, VerifiedPlatform, identity,
    policy::TcbStatus,
    sev_snp::{self, SnpFields},
};

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

/// The result of [`Verifier::verify`](crate::Verifier::verify) and [`Verifier::verify_snp`](crate::Verifier::verify_snp), which alone can
/// build it.
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
    pub(crate) guest: Guest,
    pub(crate) platform: VerifiedPlatform,
    pub(crate) tcb_status: TcbStatus,
    pub(crate) claims: Claims,
    pub(crate) vm_config: Option<VmConfig>,
    pub(crate) os_image_hash: Option<OsImageHash>,
    pub(crate) report: CheckReport,
    pub(crate) verified_at: u64,
}

/// What guests of one platform have and others have not.
#[derive(Debug, Clone)]
pub(crate) enum Guest {
    Td(Box<TdGuest>),
    SevSnp(Box<SnpGuest>),
}

#[derive(Debug, Clone)]
pub(crate) struct TdGuest {
    pub(crate) fields: TdFields,
    pub(crate) fmspc: [u8; 6],
    pub(crate) log: EventLog,
    pub(crate) acpi_tables_computed: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct SnpGuest {
    pub(crate) fields: SnpFields,
    pub(crate) document: MrConfigDocument,
}

impl VerifiedEvidence {
    /// Name of the platform in policies: `dstack-tdx`, `dstack-amd-sev-snp`.
    #[must_use]
    pub fn tee_variant(&self) -> &'static str {
        match self.guest {
            Guest::Td(_) => "dstack-tdx",
            Guest::SevSnp(_) => "dstack-amd-sev-snp",
        }
    }

    fn td(&self) -> Option<&TdGuest> {
        match &self.guest {
            Guest::Td(td) => Some(td),
            Guest::SevSnp(_) => None,
        }
    }

    /// Who the VM is: identity events of a TD, what was bound to the launch of an SNP guest.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The OS image that the launch measurements prove; `None` if that was not checked.
    #[must_use]
    pub fn os_image_hash(&self) -> Option<&OsImageHash> {
        self.os_image_hash.as_ref()
    }

    /// Whether the ACPI tables in RTMR0 are those of a known machine, rather than whatever the log names. Never of an SNP guest, whose
    /// measurement does not cover them.
    #[must_use]
    pub fn acpi_tables_computed(&self) -> bool {
        self.td().is_some_and(|td| td.acpi_tables_computed)
    }

    /// See [`identity::mr_system`] and [`sev_snp::mr_system`].
    #[must_use]
    pub fn mr_system(&self, scope: MrScope) -> [u8; 32] {
        let provider = match scope {
            MrScope::BootTime => None,
            MrScope::Runtime => self.claims.key_provider.as_ref().map(|provider| provider.raw.as_slice()),
        };
        match &self.guest {
            Guest::Td(td) => identity::mr_system(&td.fields, provider),
            Guest::SevSnp(guest) => sev_snp::mr_system(&guest.fields),
        }
    }

    /// See [`identity::mr_aggregated`] and [`sev_snp::mr_aggregated`]. The boot-time form of a TD exists once `boot-mr-done` was measured;
    /// an SNP guest has one digest for its whole life.
    #[must_use]
    pub fn mr_aggregated(&self, scope: MrScope) -> Option<[u8; 32]> {
        let td = match &self.guest {
            Guest::Td(td) => td,
            Guest::SevSnp(guest) => return Some(sev_snp::mr_aggregated(&guest.fields)),
        };
        let rtmr3: Digest384 = match scope {
            MrScope::BootTime => td.log.boot_time_rtmr3()?,
            MrScope::Runtime => *td.fields.rtmr.get(3)?,
        };
        Some(identity::mr_aggregated(&td.fields, &rtmr3))
    }

    /// SHA-256 of the machine's id (PPID of the verified PCK certificate, CHIP_ID): the same for all guests of one machine. Of the empty
    /// text where the host masks the chip.
    #[must_use]
    pub fn device_id(&self) -> [u8; 32] {
        identity::device_id(&self.platform)
    }

    /// State of the platform's firmware; of a TD together with the quoting enclave's. Never `Revoked`. AMD names no levels:
    /// `UpToDate` of an SNP guest says that no update is half done.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// Advisories that apply.
    #[must_use]
    pub fn advisory_ids(&self) -> &[String] {
        &self.platform.advisory_ids
    }

    /// What the hardware says, as every platform gives it.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }

    /// Model of a TDX platform.
    #[must_use]
    pub fn fmspc(&self) -> Option<&[u8; 6]> {
        self.td().map(|td| &td.fmspc)
    }

    /// Lower of the evaluation data numbers of TCB information and quoting enclave identity.
    #[must_use]
    pub fn tcb_evaluation_data_number(&self) -> u32 {
        self.platform.tcb_evaluation_data_number.unwrap_or_default()
    }

    /// Registers and fields of a TD's quote.
    #[must_use]
    pub fn td_fields(&self) -> Option<&TdFields> {
        self.td().map(|td| &td.fields)
    }

    /// Fields of an SNP guest's report.
    #[must_use]
    pub fn snp_fields(&self) -> Option<&SnpFields> {
        match &self.guest {
            Guest::Td(_) => None,
            Guest::SevSnp(guest) => Some(&guest.fields),
        }
    }

    /// The document that the host bound to the launch of an SNP guest: app, instance, and where the keys come from.
    #[must_use]
    pub fn launch_document(&self) -> Option<&MrConfigDocument> {
        match &self.guest {
            Guest::Td(_) => None,
            Guest::SevSnp(guest) => Some(&guest.document),
        }
    }

    /// What the requester put in.
    #[must_use]
    pub fn report_data(&self) -> &ReportData {
        match &self.guest {
            Guest::Td(td) => &td.fields.report_data,
            Guest::SevSnp(guest) => &guest.fields.report_data,
        }
    }

    /// The replayed log of a TD.
    #[must_use]
    pub fn event_log(&self) -> Option<&EventLog> {
        self.td().map(|td| &td.log)
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

    /// Unix seconds until which the vendor's papers allow this verdict.
    #[must_use]
    pub fn collateral_expires_at(&self) -> u64 {
        self.platform.valid_until.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
