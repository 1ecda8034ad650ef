//! What an appraisal demands beyond what is always demanded.

pub use dcap_qvl::TcbStatus;

/// Whether the boot registers must be those of a known OS image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageRule {
    /// The configuration must name an image, and MRTD and RTMR0 to RTMR2 must be the ones it produces.
    #[default]
    Required,
    /// Checked where the configuration allows it, and reported; a configuration that names an image wrongly still fails.
    WherePossible,
}

/// Demands of a verifier. The default demands an OS image and accepts every TCB status except `Revoked`, which is never accepted.
///
/// Always demanded, whatever the policy: genuine signatures, unexpired collateral, no debug, no service TD, no migration,
/// `SEPT_VE_DISABLE`, Intel's TDX module, a log that replays, MRCONFIGID in agreement with the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// OS image.
    pub image: ImageRule,
    /// Accepted TCB statuses; `None` leaves the judgement to the reader of the claims.
    pub accepted_tcb: Option<Vec<TcbStatus>>,
    /// Advisories that must not apply.
    pub rejected_advisories: Vec<String>,
    /// Accept ACPI tables that the log names and nobody has looked at, where they cannot be computed (hardware; the guest's kernel
    /// runs code from them). [`VerifiedEvidence::acpi_tables_computed`](crate::VerifiedEvidence::acpi_tables_computed) tells.
    pub accept_unchecked_acpi: bool,
}

impl Policy {
    /// Demands that hold for release of secrets: an OS image and an up-to-date platform.
    #[must_use]
    pub fn strict() -> Self {
        Self { image: ImageRule::Required, accepted_tcb: Some(vec![TcbStatus::UpToDate]), ..Self::default() }
    }

    /// Everything is reported, only what is always demanded is refused.
    #[must_use]
    pub fn report_only() -> Self {
        Self { image: ImageRule::WherePossible, accept_unchecked_acpi: true, ..Self::default() }
    }
}
