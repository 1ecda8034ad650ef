//! From verified evidence to permission.

use std::time::Duration;

use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_manifest::{AppId, ComposeHash, InstanceId, OsImageHash};
use tokio::sync::Semaphore;

use crate::{Backend, BootFacts, Denial, Permission, Subject, WatchedAllowList};

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
    evidence_age_seconds: Option<u64>,
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

    /// Upper bound of the evidence's age; none where it carries no nonce.
    #[must_use]
    pub fn evidence_age_seconds(&self) -> Option<u64> {
        self.evidence_age_seconds
    }
}

/// A KMS that may have the root keys. Only [`Authorizer`] makes one, only from verified evidence.
///
/// ```compile_fail,E0423
/// let forged = dstack_authorization::AuthorizedKms(());
/// ```
#[derive(Debug, Clone)]
pub struct AuthorizedKms(());

/// What a backend is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorizerLimits {
    /// For one decision, waiting included.
    pub deadline: Duration,
    /// Questions at a time; more wait.
    pub concurrent: usize,
    /// Oldest view that a decision may rest on.
    pub max_staleness: Duration,
}

impl Default for AuthorizerLimits {
    /// Ten seconds, 64 at a time, five minutes.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), concurrent: 64, max_staleness: Duration::from_secs(300) }
    }
}

/// The policy in force.
#[derive(Debug)]
pub struct Authorizer {
    backend: Box<dyn Backend>,
    limits: AuthorizerLimits,
    slots: Semaphore,
}

impl Authorizer {
    /// Decides by `backend` within `limits`.
    #[must_use]
    pub fn new(backend: impl Backend + 'static, limits: AuthorizerLimits) -> Self {
        Self { backend: Box::new(backend), limits, slots: Semaphore::new(limits.concurrent.max(1)) }
    }

    /// Decides by an allow list.
    #[must_use]
    pub fn allow_list(list: WatchedAllowList) -> Self {
        Self::new(list, AuthorizerLimits::default())
    }

    /// Name of the backend.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend.name()
    }

    /// Whether the boot may have its app's keys.
    ///
    /// `scope`: [`MrScope::Runtime`] for key release, [`MrScope::BootTime`] for certificates. `age`: since the nonce that the evidence
    /// binds was given out; none where it binds none.
    ///
    /// Errors: the policy's reason, or that there is no decision.
    pub async fn authorize_app(
        &self,
        evidence: &VerifiedEvidence,
        scope: MrScope,
        age: Option<Duration>,
    ) -> Result<AuthorizedBoot, Denial> {
        let subject = match scope {
            MrScope::Runtime => Subject::App,
            MrScope::BootTime => Subject::Certificate,
        };
        let facts = BootFacts { evidence_age_seconds: age.map(|age| age.as_secs()), ..BootFacts::of(evidence, scope) };
        facts.check_app(self.backend.accepts_simulated())?;
        let app_id = facts.app_id.ok_or(Denial::NoApplication)?;
        let compose_hash = facts.compose_hash.ok_or(Denial::NoApplication)?;
        let os_image_hash = facts.os_image_hash.ok_or(Denial::OsImageUnknown)?;
        let permission = self.ask(subject, &facts).await?;
        Ok(AuthorizedBoot {
            app_id,
            instance_id: facts.instance_id,
            compose_hash,
            os_image_hash,
            gateway_app_id: permission.gateway_app_id,
            is_simulated: facts.is_simulated,
            evidence_age_seconds: facts.evidence_age_seconds,
        })
    }

    /// Whether the boot may have the root keys.
    ///
    /// Errors: the policy's reason, or that there is no decision.
    pub async fn authorize_kms(&self, evidence: &VerifiedEvidence) -> Result<AuthorizedKms, Denial> {
        let facts = BootFacts::of(evidence, MrScope::Runtime);
        facts.check_kms(self.backend.accepts_simulated())?;
        self.ask(Subject::Kms, &facts).await?;
        Ok(AuthorizedKms(()))
    }

    async fn ask(&self, subject: Subject, facts: &BootFacts) -> Result<Permission, Denial> {
        let broke_off = |reason: String| Denial::Unavailable { reason };
        let asked = async {
            let _slot = self.slots.acquire().await.map_err(|error| broke_off(error.to_string()))?;
            self.backend.decide(subject, facts).await
        };
        let decided = tokio::time::timeout(self.limits.deadline, asked).await;
        let permission = decided.map_err(|_| broke_off(format!("nothing within {} s", self.limits.deadline.as_secs_f32())))??;
        let max_seconds = self.limits.max_staleness.as_secs();
        match permission.staleness.as_secs() {
            seconds if seconds > max_seconds => Err(Denial::Stale { seconds, max_seconds }),
            _ => Ok(permission),
        }
    }

    /// The app that is the gateway, if there is one, as last known; nobody is asked.
    #[must_use]
    pub fn gateway_app_id(&self) -> Option<AppId> {
        self.backend.gateway_app_id()
    }

    /// Whether the policy accepts evidence of a software TEE.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.backend.accepts_simulated()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use dstack_api::UserFacing as _;

    use super::*;
    use crate::{Decision, parse_boot_info};

    /// Decides after `delay` with a view of that age.
    #[derive(Debug)]
    struct Slow {
        delay: Duration,
        staleness: Duration,
    }

    impl Backend for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }

        fn decide<'a>(&'a self, _: Subject, _: &'a BootFacts) -> Decision<'a> {
            Box::pin(async {
                tokio::time::sleep(self.delay).await;
                Ok(Permission { gateway_app_id: None, staleness: self.staleness })
            })
        }

        fn gateway_app_id(&self) -> Option<AppId> {
            None
        }

        fn accepts_simulated(&self) -> bool {
            false
        }
    }

    async fn ask(delay: u64, staleness: u64) -> Result<Permission, Denial> {
        let backend = Slow { delay: Duration::from_secs(delay), staleness: Duration::from_secs(staleness) };
        let info = dstack_api::policy_webhook::PolicyBootInfo { device_id: "00".repeat(32), ..Default::default() };
        Authorizer::new(backend, AuthorizerLimits::default()).ask(Subject::App, &parse_boot_info(&info).unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_may_take_seconds_but_not_longer_than_the_deadline() {
        assert!(ask(9, 0).await.is_ok());
        assert_eq!(ask(11, 0).await.unwrap_err().code(), "kms/policy-unavailable");
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_may_lag_but_not_more_than_allowed() {
        assert!(ask(0, 300).await.is_ok());
        assert_eq!(ask(0, 301).await.unwrap_err(), Denial::Stale { seconds: 301, max_seconds: 300 });
    }
}
