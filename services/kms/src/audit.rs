//! What is written down about each release and each refusal.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dstack_api::UserFacing;
use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_authorization::{AuthorizedBoot, BootFacts, boot_info};
use dstack_release_log::{Entry, EventKind};
use dstack_rpc::{Caller, Peer};
use dstack_service::clock::unix_seconds;

use crate::{
    metrics::Metrics,
    release_log::{ReleaseLog, ReleaseLogError},
};

/// Refusals that strangers can cause are logged at most this often.
const REFUSALS_PER_WINDOW: u32 = 50;
const WINDOW: Duration = Duration::from_secs(10);

/// What happened, three times: in the release log for everybody, in the program's log for the operator, and counted.
pub(crate) struct Audit {
    pub(crate) log: ReleaseLog,
    pub(crate) metrics: Metrics,
    policy: &'static str,
    /// Refusals that have no entry yet.
    suppressed: AtomicU64,
    window: Mutex<(Instant, u32)>,
}

/// Which call is logged, by whom.
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) caller: &'a Caller,
    pub(crate) started: Instant,
}

impl Call<'_> {
    fn peer(&self) -> String {
        match self.caller.peer {
            Peer::Tcp(address) => address.to_string(),
            Peer::Unix { pid, uid } => format!("unix pid {pid} uid {uid}"),
            Peer::Vsock { cid } => format!("vsock cid {cid}"),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Audit {
    /// Entries go into `log`; `policy`: who decides.
    pub(crate) fn new(log: ReleaseLog, policy: &'static str) -> Self {
        Self { log, policy, metrics: Metrics::default(), suppressed: AtomicU64::new(0), window: Mutex::new((Instant::now(), 0)) }
    }

    /// Keys or a certificate go out: once this has succeeded, and not before. Gives the proof that it is in the log.
    ///
    /// Errors: it cannot be logged, so nothing goes out.
    pub(crate) async fn released(
        &self,
        call: &Call<'_>,
        boot: &AuthorizedBoot,
        evidence: &VerifiedEvidence,
        scope: MrScope,
    ) -> Result<String, ReleaseLogError> {
        let mut entry = self.entry(EventKind::Release, call, Some((evidence, scope)));
        entry.evidence_age_seconds = boot.evidence_age_seconds();
        let logged = self.append(&entry).await?;
        self.metrics.released(call.method, call.started.elapsed());
        tracing::info!(
            target: "dstack_kms::audit",
            method = call.method,
            request_id = call.caller.request_id,
            peer = call.peer(),
            app_id = %boot.app_id(),
            instance_id = %boot.instance_id(),
            compose_hash = %boot.compose_hash(),
            os_image_hash = %boot.os_image_hash(),
            device_id = hex::encode(evidence.device_id()),
            platform = evidence.tee_variant(),
            tcb_status = %evidence.tcb_status(),
            policy = self.policy,
            simulated = boot.is_simulated(),
            elapsed_ms = call.elapsed_ms(),
            "released"
        );
        Ok(logged)
    }

    /// The root keys go to another KMS.
    ///
    /// Errors: as [`Self::released`].
    pub(crate) async fn root_released(&self, call: &Call<'_>, evidence: &VerifiedEvidence) -> Result<(), ReleaseLogError> {
        let entry = self.entry(EventKind::Release, call, Some((evidence, MrScope::Runtime)));
        self.append(&entry).await?;
        self.metrics.released(call.method, call.started.elapsed());
        tracing::warn!(
            target: "dstack_kms::audit",
            method = call.method,
            request_id = call.caller.request_id,
            peer = call.peer(),
            mr_aggregated = evidence.mr_aggregated(MrScope::Runtime).map(hex::encode),
            device_id = hex::encode(evidence.device_id()),
            platform = evidence.tee_variant(),
            tcb_status = %evidence.tcb_status(),
            simulated = evidence.is_simulated(),
            elapsed_ms = call.elapsed_ms(),
            "root keys released to a replica"
        );
        Ok(())
    }

    /// Nothing goes out. `evidence`: what the caller proved before it was denied.
    ///
    /// What proved something has an entry of its own; of those who proved nothing, beyond a limit only the number is kept.
    pub(crate) fn refused(&self, call: &Call<'_>, reason: &dyn UserFacing, evidence: Option<&VerifiedEvidence>) {
        self.metrics.refused(reason.code());
        let window = self.admit();
        if window.is_some() || evidence.is_some() {
            let mut entry = self.entry(EventKind::Refusal, call, evidence.map(|evidence| (evidence, MrScope::Runtime)));
            entry.code = reason.code().to_owned();
            if !self.log.note(&entry) {
                self.suppressed.fetch_add(entry.suppressed + 1, Ordering::Relaxed);
            }
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        let Some(suppressed) = window else { return };
        let claims = evidence.map(VerifiedEvidence::claims);
        tracing::warn!(
            target: "dstack_kms::audit",
            method = call.method,
            request_id = call.caller.request_id,
            peer = call.peer(),
            app_id = claims.and_then(|claims| claims.app_id).map(|id| id.to_string()),
            compose_hash = claims.and_then(|claims| claims.compose_hash).map(|hash| hash.to_string()),
            device_id = evidence.map(|evidence| hex::encode(evidence.device_id())),
            code = reason.code(),
            error = dstack_api::RpcError::from_user_facing(reason).message,
            fix = reason.fix(),
            suppressed,
            elapsed_ms = call.elapsed_ms(),
            "refused"
        );
    }

    async fn append(&self, entry: &Entry) -> Result<String, ReleaseLogError> {
        self.log.append(entry).await.inspect_err(|_| {
            self.suppressed.fetch_add(entry.suppressed, Ordering::Relaxed);
            self.metrics.unlogged();
        })
    }

    /// An entry with everything that the evidence proves, and the refusals that have none.
    fn entry(&self, event: EventKind, call: &Call<'_>, evidence: Option<(&VerifiedEvidence, MrScope)>) -> Entry {
        let mut entry = Entry::new(event, unix_seconds());
        entry.method = call.method.to_owned();
        entry.request_id.clone_from(&call.caller.request_id);
        entry.suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        let Some((evidence, scope)) = evidence else { return entry };
        let info = boot_info(&BootFacts::of(evidence, scope));
        Entry {
            policy: self.policy.to_owned(),
            app_id: info.app_id,
            instance_id: info.instance_id,
            compose_hash: info.compose_hash,
            os_image_hash: info.os_image_hash,
            device_id: info.device_id,
            mr_aggregated: info.mr_aggregated,
            platform: info.tee_variant,
            tcb_status: info.tcb_status,
            advisory_ids: info.advisory_ids,
            simulated: info.simulated,
            ..entry
        }
    }

    /// How many lines of the last window were left out, or none if this one is.
    fn admit(&self) -> Option<u32> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suppressed = 0;
        if window.0.elapsed() >= WINDOW {
            suppressed = window.1.saturating_sub(REFUSALS_PER_WINDOW);
            *window = (Instant::now(), 0);
        }
        window.1 = window.1.saturating_add(1);
        (window.1 <= REFUSALS_PER_WINDOW).then_some(suppressed)
    }
}
