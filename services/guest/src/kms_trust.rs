//! Which KMS a guest believes: the one whose root the app pins, or where the app pins none, one that proves to run in a TEE.
//!
//! Which system a KMS should run is not the guest's to know: evidence shows that the host and the network cannot read what is said, a pin
//! shows who it is said to. False evidence is refused in any case.

use std::sync::Arc;

use dstack_attestation::{ImageRule, Policy, TrustAnchors, Verifier};
use dstack_manifest::SysConfig;
use dstack_ra_tls::{
    CertificateError, EvidenceVerifier, Refusal, VerificationLimits,
    collateral::{CollateralClient, FetchError},
};

/// Where collateral comes from if the host names no other source. It is signed, so a host can only keep it away.
const COLLATERAL_URL: &str = "https://api.trustedservices.intel.com";

/// What makes a KMS acceptable.
#[derive(Debug, Clone)]
pub struct KmsTrust {
    pinned_root: Option<Vec<u8>>,
    verification: Arc<EvidenceVerifier>,
}

impl KmsTrust {
    /// Trust in the KMS with this root (SPKI DER), or in any with evidence. `verification`: judges evidence.
    #[must_use]
    pub fn new(pinned_root: Option<Vec<u8>>, verification: Arc<EvidenceVerifier>) -> Self {
        Self { pinned_root, verification }
    }

    /// As [`Self::new`], under the hardware vendors' roots, with collateral from where the host says.
    ///
    /// Errors: the host names a source that is no address.
    pub fn in_hardware(pinned_root: Option<Vec<u8>>, sys_config: &SysConfig) -> Result<Self, FetchError> {
        let named = sys_config.collateral_urls.as_ref().and_then(|urls| urls.pccs.as_deref()).or(sys_config.pccs_url.as_deref());
        let collateral = CollateralClient::new(named.unwrap_or(COLLATERAL_URL))?.with_tls(dstack_rpc::system_tls());
        let policy = Policy { image: ImageRule::WherePossible, accept_unchecked_acpi: true, ..Policy::default() };
        let verifier = Verifier::new(TrustAnchors::hardware(), policy);
        let verification = EvidenceVerifier::new(verifier, collateral, VerificationLimits::default()).accepting_snp_guests(None);
        Ok(Self::new(pinned_root, Arc::new(verification)))
    }

    /// SPKI DER of the only acceptable root; none if the app pins none.
    #[must_use]
    pub fn pinned_root(&self) -> Option<&[u8]> {
        self.pinned_root.as_deref()
    }

    /// Judges the evidence in a KMS's certificate. `now`: Unix seconds.
    ///
    /// Errors: it is false; or there is none, or none that can be judged, and the app pins no root.
    pub async fn judge(&self, leaf: &[u8], now: u64) -> Result<(), Refusal> {
        match self.verification.of_certificate(leaf, "", now).await {
            Ok(_) => Ok(()),
            Err(refusal) if self.pinned_root.is_some() && says_nothing(&refusal) => {
                tracing::info!(reason = %refusal, "the KMS is known by its pinned root alone");
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }
}

/// Whether nothing was found out, neither for nor against the peer.
fn says_nothing(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NoEvidence | Refusal::Certificate(CertificateError::NotImplemented(_))) || refusal.is_undecided()
}
