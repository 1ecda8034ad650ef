//! From verified evidence to permission.

use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_manifest::{AppId, ComposeHash, InstanceId, OsImageHash};

use crate::{BootFacts, Denial, WatchedAllowList};

/// A boot that may have the keys of its app. Only [`Authorizer`] makes one, only from verified evidence.
///
/// ```compile_fail,E0451
/// fn forge(real: dstack_authorization::AuthorizedBoot) -> dstack_authorization::AuthorizedBoot {
///     dstack_authorization::AuthorizedBoot { is_simulated: false, ..real }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizedBoot {
    app_id: AppId,
    instance_id: InstanceId,
    compose_hash: ComposeHash,
    os_image_hash: OsImageHash,
    gateway_app_id: Option<AppId>,
    is_simulated: bool,
}

impl AuthorizedBoot {
    /// The measured app.
    #[must_use]
    pub fn app_id(&self) -> &AppId {
        &self.app_id
    }

    /// The measured instance; none where the app runs without instance ids.
    #[must_use]
    pub fn instance_id(&self) -> &InstanceId {
        &self.instance_id
    }

    /// The measured document.
    #[must_use]
    pub fn compose_hash(&self) -> &ComposeHash {
        &self.compose_hash
    }

    /// The OS image the registers prove.
    #[must_use]
    pub fn os_image_hash(&self) -> &OsImageHash {
        &self.os_image_hash
    }

    /// The app that is the gateway at the time of the decision, if there is one.
    #[must_use]
    pub fn gateway_app_id(&self) -> Option<&AppId> {
        self.gateway_app_id.as_ref()
    }

    /// Whether the evidence was of a software TEE.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.is_simulated
    }
}

/// A KMS that may have the root keys. Only [`Authorizer`] makes one, only from verified evidence.
///
/// ```compile_fail,E0423
/// let forged = dstack_authorization::AuthorizedKms(());
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizedKms(());

/// The policy in force.
#[derive(Debug)]
pub struct Authorizer {
    list: WatchedAllowList,
}

impl Authorizer {
    /// Decides by an allow list.
    #[must_use]
    pub fn allow_list(list: WatchedAllowList) -> Self {
        Self { list }
    }

    /// Whether the boot may have its app's keys.
    ///
    /// `scope`: [`MrScope::Runtime`] for key release, [`MrScope::BootTime`] for certificates.
    ///
    /// Errors: the policy's reason.
    pub fn authorize_app(&self, evidence: &VerifiedEvidence, scope: MrScope) -> Result<AuthorizedBoot, Denial> {
        let list = self.list.current();
        let facts = BootFacts::of(evidence, scope);
        list.decide_app(&facts)?;
        let app_id = facts.app_id.ok_or(Denial::NoApplication)?;
        let compose_hash = facts.compose_hash.ok_or(Denial::NoApplication)?;
        let os_image_hash = facts.os_image_hash.ok_or(Denial::OsImageUnknown)?;
        Ok(AuthorizedBoot {
            app_id,
            instance_id: evidence.claims().instance_id,
            compose_hash,
            os_image_hash,
            gateway_app_id: list.gateway_app_id().copied(),
            is_simulated: facts.is_simulated,
        })
    }

    /// Whether the boot may have the root keys.
    ///
    /// Errors: the policy's reason.
    pub fn authorize_kms(&self, evidence: &VerifiedEvidence) -> Result<AuthorizedKms, Denial> {
        self.list.current().decide_kms(&BootFacts::of(evidence, MrScope::Runtime))?;
        Ok(AuthorizedKms(()))
    }

    /// The app that is the gateway, if there is one.
    #[must_use]
    pub fn gateway_app_id(&self) -> Option<AppId> {
        self.list.current().gateway_app_id().copied()
    }

    /// Whether the policy accepts evidence of a software TEE.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.list.current().accepts_simulated()
    }
}
