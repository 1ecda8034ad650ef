//! What a policy may look at.

use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_manifest::{AppId, ComposeHash, Digest32, InstanceId, OsImageHash};

use crate::Denial;

/// Claims of one verified boot, as far as policy is concerned.
///
/// The struct can be filled by anyone, also to ask "what would happen if"; it opens nothing. Only
/// [`crate::AuthorizedBoot`] does, and that is made from verified evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFacts {
    /// Application, if the event log names one.
    pub app_id: Option<AppId>,
    /// Instance; [`InstanceId::NONE`] where the app runs without instance ids.
    pub instance_id: InstanceId,
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
    /// Digest over the registers of firmware, OS and key provider.
    pub mr_system: Digest32,
    /// Payload of the key provider event; empty before it was measured.
    pub key_provider: Vec<u8>,
    /// Kind of TEE, such as `dstack-tdx`.
    pub tee_variant: String,
    /// Digest of the hardware's identity.
    pub device_id: Digest32,
    /// Vendor's word for the platform's patch level, such as `UpToDate`.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisory_ids: Vec<String>,
    /// Whether the evidence is of a software TEE.
    pub is_simulated: bool,
    /// Seconds since the nonce in the evidence was given out, an upper bound of the evidence's age; none where it carries no nonce,
    /// so that it may be of any age.
    pub evidence_age_seconds: Option<u64>,
}

impl BootFacts {
    /// What verified evidence says. `scope`: how far into the log the digest reaches. The age is unknown.
    #[must_use]
    pub fn of(evidence: &VerifiedEvidence, scope: MrScope) -> Self {
        let claims = evidence.claims();
        Self {
            app_id: claims.app_id,
            instance_id: claims.instance_id,
            compose_hash: claims.compose_hash,
            os_image_hash: evidence.os_image_hash().copied(),
            is_identity_complete: claims.boot_time_complete,
            is_after_boot: scope == MrScope::Runtime && claims.key_provider.is_some(),
            mr_aggregated: evidence.mr_aggregated(scope).map(Digest32::new),
            mr_system: Digest32::new(evidence.mr_system(scope)),
            key_provider: claims.key_provider.as_ref().map(|provider| provider.raw.clone()).unwrap_or_default(),
            tee_variant: evidence.tee_variant().to_owned(),
            device_id: Digest32::new(evidence.device_id()),
            tcb_status: evidence.tcb_status().to_string(),
            advisory_ids: evidence.advisory_ids().to_vec(),
            is_simulated: evidence.is_simulated(),
            evidence_age_seconds: None,
        }
    }

    /// What must hold for an app whatever the policy says. `accepts_simulated`: a setting under `[danger]`.
    ///
    /// Errors: the first reason that applies.
    pub fn check_app(&self, accepts_simulated: bool) -> Result<(), Denial> {
        self.check_anchor(accepts_simulated)?;
        if self.app_id.is_none() || self.compose_hash.is_none() {
            return Err(Denial::NoApplication);
        }
        if !self.is_identity_complete {
            return Err(Denial::BootIncomplete);
        }
        if self.is_after_boot { Err(Denial::AfterBoot) } else { Ok(()) }
    }

    /// What must hold for a KMS whatever the policy says.
    ///
    /// Errors: the first reason that applies.
    pub fn check_kms(&self, accepts_simulated: bool) -> Result<(), Denial> {
        self.check_anchor(accepts_simulated)?;
        if self.mr_aggregated.is_some() { Ok(()) } else { Err(Denial::BootIncomplete) }
    }

    pub(crate) fn check_anchor(&self, accepts_simulated: bool) -> Result<(), Denial> {
        if self.is_simulated && !accepts_simulated { Err(Denial::Simulated) } else { Ok(()) }
    }
}
