//! What a policy may look at.

use dstack_manifest::{AppId, ComposeHash, Digest32, OsImageHash};

/// Claims of one verified boot, as far as policy is concerned.
///
/// The struct can be filled by anyone, also to ask "what would happen if"; it opens nothing. Only
/// [`crate::AuthorizedBoot`] does, and that is made from verified evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFacts {
    /// Application, if the event log names one.
    pub app_id: Option<AppId>,
    /// Document of the application, if the event log names one.
    pub compose_hash: Option<ComposeHash>,
    /// OS image whose measurement the registers agree with.
    pub os_image_hash: Option<OsImageHash>,
    /// Digest over all registers.
    pub mr_aggregated: Digest32,
    /// Digest of the hardware's identity.
    pub device_id: Digest32,
    /// Vendor's word for the platform's patch level, such as `UpToDate`.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisory_ids: Vec<String>,
    /// Whether the evidence is of a software TEE.
    pub is_simulated: bool,
}
