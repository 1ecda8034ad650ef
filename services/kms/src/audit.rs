//! One line per release and per refusal, for the operator.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use dstack_api::UserFacing;
use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_authorization::AuthorizedBoot;
use dstack_rpc::{Caller, Peer};

/// Refusals that strangers can cause are logged at most this often.
const REFUSALS_PER_WINDOW: u32 = 50;
const WINDOW: Duration = Duration::from_secs(10);

/// The log of releases. Every release is in it; refusals are rate-limited and counted.
pub(crate) struct Audit {
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
    pub(crate) fn new() -> Self {
        Self { window: Mutex::new((Instant::now(), 0)) }
    }

    /// Keys or a certificate go out.
    pub(crate) fn released(&self, call: &Call<'_>, boot: &AuthorizedBoot, evidence: &VerifiedEvidence) {
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
            simulated = boot.is_simulated(),
            elapsed_ms = call.elapsed_ms(),
            "released"
        );
    }

    /// The root keys go to another KMS.
    pub(crate) fn root_released(&self, call: &Call<'_>, evidence: &VerifiedEvidence) {
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
    }

    /// Nothing goes out. `evidence`: what the caller proved before it was denied.
    pub(crate) fn refused(&self, call: &Call<'_>, reason: &dyn UserFacing, evidence: Option<&VerifiedEvidence>) {
        let Some(suppressed) = self.admit() else { return };
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
