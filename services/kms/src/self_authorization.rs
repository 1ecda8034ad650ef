//! May this KMS itself release keys? Its own evidence goes the way of any other KMS's: verified, then judged by the policy.
//!
//! Whoever takes a system off the list of KMSs so stops those that run it, within [`ALLOWED_FOR`] and without a restart. The policy is asked
//! after the caller was admitted: a stranger causes no question.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_api::UserFacing;
use dstack_attestation::VerifiedEvidence;
use dstack_attester::AttesterError;
use dstack_authorization::{Authorizer, Denial};
use dstack_ra_tls::{EvidenceVerifier, Refusal};
use dstack_service::clock::unix_seconds;
use tokio::sync::Mutex;

use crate::tee::Tee;

/// A yes of the policy holds this long; a no is not kept.
const ALLOWED_FOR: Duration = Duration::from_secs(10);
/// Report data of the evidence: it is shown to nobody, so it binds nothing.
const REPORT_DATA: &[u8] = b"dstack-kms: self authorization";

/// Why this KMS releases nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SelfRefusal {
    /// The TEE.
    #[error("this machine gives no evidence")]
    Attest(#[source] AttesterError),
    /// The evidence.
    #[error("this machine's own evidence does not hold")]
    Evidence(#[source] Refusal),
    /// The policy.
    #[error("this KMS is not allowed")]
    Policy(#[source] Denial),
}

impl UserFacing for SelfRefusal {
    fn code(&self) -> &'static str {
        "kms/self-authorization"
    }

    fn fix(&self) -> String {
        "allow this KMS's measurement in the policy, or start the one that is allowed".to_owned()
    }
}

/// This machine's verified evidence over `report_data`; none without a TEE.
pub(crate) async fn own_evidence(
    tee: &Tee,
    verification: &EvidenceVerifier,
    report_data: &[u8; 64],
) -> Result<Option<Arc<VerifiedEvidence>>, SelfRefusal> {
    let Some(envelope) = tee.attest(report_data).map_err(SelfRefusal::Attest)? else { return Ok(None) };
    let verified = verification.of_envelope(&envelope, report_data, unix_seconds()).await;
    verified.map(Some).map_err(SelfRefusal::Evidence)
}

#[derive(Default)]
struct Judged {
    /// Got and verified once; the inner one is none without a TEE.
    evidence: Option<Option<Arc<VerifiedEvidence>>>,
    allowed_until: Option<Instant>,
}

/// The check, with what is remembered of it. One question at a time.
pub(crate) struct SelfAuthorization(Mutex<Judged>);

impl SelfAuthorization {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Errors: the policy does not allow this KMS, cannot be asked, or there is a TEE whose evidence does not hold.
    pub(crate) async fn check(&self, tee: &Tee, verification: &EvidenceVerifier, authorizer: &Authorizer) -> Result<(), SelfRefusal> {
        let mut judged = self.0.lock().await;
        if judged.allowed_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let evidence = match &judged.evidence {
            Some(evidence) => evidence.clone(),
            None => own_evidence(tee, verification, &padded(REPORT_DATA)).await?,
        };
        judged.evidence = Some(evidence.clone());
        if let Some(evidence) = evidence {
            authorizer.authorize_kms(&evidence).await.map_err(SelfRefusal::Policy)?;
        }
        judged.allowed_until = Some(Instant::now() + ALLOWED_FOR);
        Ok(())
    }
}

/// At most 64 bytes, with zeros behind.
pub(crate) fn padded(content: &[u8]) -> [u8; 64] {
    let mut report_data = [0; 64];
    report_data.iter_mut().zip(content).for_each(|(place, byte)| *place = *byte);
    report_data
}
