//! What a client hears when it is not believed, and what the operator reads.

use std::sync::Arc;

use dstack_api::{RpcError, UserFacing};
use dstack_attestation::VerifiedEvidence;
use dstack_ra_tls::{CertRequest, EvidenceVerifier, Refusal as PeerRefusal};

/// Why a client is not believed. For the operator; the client itself is told only that it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    #[error("the client showed no certificate")]
    NoCertificate,
    #[error(transparent)]
    Peer(#[from] PeerRefusal),
}

impl UserFacing for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "kms/no-client-certificate",
            Self::Peer(PeerRefusal::Request(_)) => "kms/certificate-request",
            Self::Peer(refusal) => refusal.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoCertificate | Self::Peer(PeerRefusal::NoEvidence | PeerRefusal::Certificate(_)) => {
                "connect with a client certificate under the temporary authority of GetTempCaCert that carries evidence".to_owned()
            }
            Self::Peer(PeerRefusal::Request(_)) => {
                "send the SCALE request and the signature by its key, as SignCert version 1 or 2 defines them".to_owned()
            }
            Self::Peer(PeerRefusal::SnpNotEnabled) => {
                "run the guest on Intel TDX, or have the operator add \"sev-snp\" to attestation.accept of the KMS".to_owned()
            }
            Self::Peer(refusal) => refusal.fix(),
        }
    }
}

impl Refusal {
    /// What the client hears. A missing certificate or a malformed request is the client's own knowledge, and that a whole kind of TEE is
    /// not taken is no secret; why evidence is not believed is told to the operator only.
    pub(crate) fn for_client(&self, request_id: &str) -> RpcError {
        match self {
            Self::NoCertificate => RpcError::new(self.code(), "No attestation provided", self.fix()),
            Self::Peer(PeerRefusal::NoEvidence | PeerRefusal::Certificate(_) | PeerRefusal::Request(_)) => RpcError::from_user_facing(self),
            Self::Peer(PeerRefusal::SnpNotEnabled) => RpcError::from_user_facing(self),
            Self::Peer(PeerRefusal::Collateral(_)) if self.is_undecided() => RpcError::new(
                "kms/collateral-unavailable",
                "the evidence cannot be judged at the moment: no collateral of its platform",
                format!("try again; the operator finds the reason under request {request_id} in the log of the KMS"),
            ),
            Self::Peer(_) => RpcError::new(
                "kms/evidence-refused",
                "the evidence is not believed",
                format!("ask the operator of the KMS, whose log has the reason under request {request_id}"),
            ),
        }
    }

    fn is_undecided(&self) -> bool {
        matches!(self, Self::Peer(refusal) if refusal.is_undecided())
    }
}

/// Verifies the evidence in a client's certificate, if it showed one.
pub(crate) async fn of_certificate(
    verification: &EvidenceVerifier,
    leaf: Option<&Vec<u8>>,
    vm_config: &str,
    now: u64,
) -> Result<Arc<VerifiedEvidence>, Refusal> {
    let leaf = leaf.ok_or(Refusal::NoCertificate)?;
    Ok(verification.of_certificate(leaf, vm_config, now).await?)
}

/// Verifies the evidence in a certificate request.
pub(crate) async fn of_request(
    verification: &EvidenceVerifier,
    request: &CertRequest,
    vm_config: &str,
    now: u64,
) -> Result<Arc<VerifiedEvidence>, Refusal> {
    Ok(verification.of_request(request, vm_config, now).await?)
}
