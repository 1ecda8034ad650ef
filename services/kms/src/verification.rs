//! From what a client shows to verified evidence.

use std::sync::Arc;

use dstack_api::{RpcError, UserFacing};
use dstack_attestation::{Evidence, VerifiedEvidence, Verifier, VerifyError};
use dstack_ra_tls::{
    CertRequest, CertificateError, CsrError, RaTlsCertificate,
    collateral::{CollateralClient, FetchError},
    ra_tls_report_data,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::evidence_cache::{ContentKey, EvidenceCache};

/// Why a client is not believed. For the operator; the client itself is told only that it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    #[error("the client showed no certificate")]
    NoCertificate,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the client's certificate carries no evidence")]
    NoEvidence,
    #[error(transparent)]
    Request(#[from] CsrError),
    #[error("collateral of the client's platform")]
    Collateral(#[from] FetchError),
    #[error(transparent)]
    Evidence(#[from] VerifyError),
    #[error("the verification broke off")]
    BrokeOff,
}

impl UserFacing for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "kms/no-client-certificate",
            Self::Certificate(_) => "ra-tls/certificate",
            Self::NoEvidence => "ra-tls/no-evidence",
            Self::Request(_) => "kms/certificate-request",
            Self::Collateral(error) => error.code(),
            Self::Evidence(error) => error.code(),
            Self::BrokeOff => "rpc/internal",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoCertificate | Self::NoEvidence | Self::Certificate(_) => {
                "connect with a client certificate under the temporary authority of GetTempCaCert that carries evidence".to_owned()
            }
            Self::Request(_) => "send the SCALE request and the signature by its key, as SignCert version 1 or 2 defines them".to_owned(),
            Self::Collateral(error) => error.fix(),
            Self::Evidence(error) => error.fix(),
            Self::BrokeOff => "read the service's log; this is a defect worth reporting".to_owned(),
        }
    }
}

impl Refusal {
    /// What the client hears. A missing certificate or a malformed request is the client's own knowledge; why evidence is not
    /// believed is told to the operator only.
    pub(crate) fn for_client(&self, request_id: &str) -> RpcError {
        match self {
            Self::NoCertificate => RpcError::new(self.code(), "No attestation provided", self.fix()),
            Self::NoEvidence | Self::Certificate(_) | Self::Request(_) => RpcError::from_user_facing(self),
            Self::Collateral(_) => RpcError::new(
                "kms/collateral-unavailable",
                "the evidence cannot be judged at the moment: no collateral of its platform",
                format!("try again; the operator finds the reason under request {request_id} in the log of the KMS"),
            ),
            Self::Evidence(_) | Self::BrokeOff => RpcError::new(
                "kms/evidence-refused",
                "the evidence is not believed",
                format!("ask the operator of the KMS, whose log has the reason under request {request_id}"),
            ),
        }
    }
}

/// Verifies clients with cached collateral, a few at a time.
pub(crate) struct Verification {
    verifier: Verifier,
    collateral: CollateralClient,
    cache: EvidenceCache,
    slots: Semaphore,
}

impl Verification {
    pub(crate) fn new(verifier: Verifier, collateral: CollateralClient, slots: usize, cache_entries: usize) -> Self {
        Self { verifier, collateral, cache: EvidenceCache::new(cache_entries), slots: Semaphore::new(slots) }
    }

    /// Verifies the evidence in a TLS client certificate and that it binds the certificate's key.
    pub(crate) async fn of_certificate(&self, leaf: Option<&Vec<u8>>, vm_config: &str, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let leaf = leaf.ok_or(Refusal::NoCertificate)?;
        let certificate = RaTlsCertificate::parse(leaf)?;
        let evidence = certificate.evidence()?.ok_or(Refusal::NoEvidence)?;
        self.verify(evidence, certificate.spki_der(), content_key(&[b"certificate", leaf, vm_config.as_bytes()]), vm_config, now).await
    }

    /// Verifies the evidence in a certificate request and that it binds the request's key.
    pub(crate) async fn of_request(&self, request: &CertRequest, vm_config: &str, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let key = content_key(&[b"request", &request.encode(), vm_config.as_bytes()]);
        self.verify(request.evidence()?, &request.pubkey, key, vm_config, now).await
    }

    async fn verify(
        &self,
        mut evidence: Evidence,
        spki: &[u8],
        key: ContentKey,
        vm_config: &str,
        now: u64,
    ) -> Result<Arc<VerifiedEvidence>, Refusal> {
        if !vm_config.is_empty() {
            evidence = evidence.with_vm_config(vm_config);
        }
        let endorsements = self.collateral.endorsements(&evidence.quote).await?;
        if let Some(verified) = self.cache.find(&key, &endorsements, now) {
            return Ok(verified);
        }
        let expected = ra_tls_report_data(spki);
        let slot = self.slots.acquire().await.map_err(|_| Refusal::BrokeOff)?;
        let (verifier, material) = (self.verifier.clone(), Arc::clone(&endorsements));
        let verdict = tokio::task::spawn_blocking(move || verifier.verify(&evidence, &material, now, Some(&expected)));
        let verified = Arc::new(verdict.await.map_err(|_| Refusal::BrokeOff)??);
        drop(slot);
        self.cache.insert(key, Arc::clone(&verified), endorsements);
        Ok(verified)
    }
}

fn content_key(parts: &[&[u8]]) -> ContentKey {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
