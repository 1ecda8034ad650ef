//! What a policy may look at.

use dstack_attestation::{MrScope, VerifiedEvidence};
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
    /// The identity part of the boot is over: nothing more will be added to what the other claims say.
    pub is_identity_complete: bool,
    /// The keys were already given when the evidence was made, and the call is one that gives them.
    pub is_after_boot: bool,
    /// Digest over all registers; none if the scope asked for is not reached.
    pub mr_aggregated: Option<Digest32>,
    /// Digest of the hardware's identity.
    pub device_id: Digest32,
    /// Vendor's word for the platform's patch level, such as `UpToDate`.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisory_ids: Vec<String>,
    /// Whether the evidence is of a software TEE.
    pub is_simulated: bool,
}

impl BootFacts {
    /// What verified evidence says. `scope`: how far into the log the digest reaches.
    #[must_use]
    pub fn of(evidence: &VerifiedEvidence, scope: MrScope) -> Self {
        let claims = evidence.claims();
        Self {
            app_id: claims.app_id,
            compose_hash: claims.compose_hash,
            os_image_hash: evidence.os_image_hash().copied(),
            is_identity_complete: claims.boot_time_complete,
            is_after_boot: scope == MrScope::Runtime && claims.key_provider.is_some(),
            mr_aggregated: evidence.mr_aggregated(scope).map(Digest32::new),
            device_id: Digest32::new(evidence.device_id()),
            tcb_status: evidence.tcb_status().to_string(),
            advisory_ids: evidence.advisory_ids().to_vec(),
            is_simulated: evidence.is_simulated(),
        }
    }
}
