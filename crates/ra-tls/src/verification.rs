//! From what a peer shows to verified evidence, with everything that can be remembered remembered.
//!
//! The same content is verified once: a verdict is kept under the hash of what the peer sent, and ends with the collateral it was judged
//! with, with the certificate it came in, or after [`VerificationLimits::max_age`], whichever is first. New collateral, another byte in
//! the certificate, another configuration: another verification.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_attestation::{
    EnvelopeError, GuestEvidence, ReportData, VerifiedEvidence, Verifier, VerifyError,
    sev_snp::{ChipKeyName, SnpEvidence, UnverifiedReport},
};
use tokio::sync::Semaphore;

use crate::{
    CertRequest, CertificateError, CsrError, RaTlsCertificate,
    collateral::{ChipKeyClient, CollateralClient, FetchError, Held, PapersOf},
    ra_tls_report_data,
    verdicts::{ContentKey, Verdict, VerdictCache},
};

/// Most platforms that handshakes may ask to be fetched.
const MAX_WANTED: usize = 16;

/// For evidence that brings its papers along.
static NO_PAPERS: LazyLock<Arc<Held>> = LazyLock::new(|| Arc::new(Held::nothing()));

/// Why a peer is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// It carries no evidence.
    #[error("the peer's certificate carries no evidence")]
    NoEvidence,
    /// The certificate request cannot be used.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// There is no collateral, so nothing can be said.
    #[error("collateral of the peer's platform")]
    Collateral(#[from] FetchError),
    /// Evidence of SEV-SNP, which this service does not take: see [`EvidenceVerifier::accepting_snp_guests`].
    #[error("amd sev-snp key release is not enabled")]
    SnpNotEnabled,
    /// A handshake cannot wait for collateral; see [`EvidenceVerifier::with_collateral`].
    #[error("collateral of {0} is not at hand")]
    CollateralNotAtHand(PapersOf),
    /// The evidence is refused.
    #[error(transparent)]
    Evidence(#[from] VerifyError),
    /// Our own fault.
    #[error("the verification broke off")]
    BrokeOff,
}

impl Refusal {
    /// Whether nothing is known against the peer: the question could not be decided.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        match self {
            Self::Collateral(error) => !error.is_of_evidence(),
            Self::CollateralNotAtHand(_) | Self::BrokeOff => true,
            _ => false,
        }
    }
}

impl UserFacing for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "ra-tls/certificate",
            Self::NoEvidence => "ra-tls/no-evidence",
            Self::Request(_) => "ra-tls/certificate-request",
            Self::SnpNotEnabled => "ra-tls/sev-snp-not-enabled",
            Self::Collateral(error) => error.code(),
            Self::CollateralNotAtHand(_) => "collateral/not-at-hand",
            Self::Evidence(error) => error.code(),
            Self::BrokeOff => "rpc/internal",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Certificate(_) | Self::NoEvidence => "connect with an RA-TLS certificate of this release".to_owned(),
            Self::Request(_) => "send the SCALE request and the signature by its key, version 1 or 2".to_owned(),
            Self::SnpNotEnabled => "run the guest on Intel TDX, or enable SEV-SNP in this service's configuration".to_owned(),
            Self::Collateral(error) => error.fix(),
            Self::CollateralNotAtHand(_) => "try again".to_owned(),
            Self::Evidence(error) => error.fix(),
            Self::BrokeOff => "read the service's log; this is a defect worth reporting".to_owned(),
        }
    }
}

/// What an [`EvidenceVerifier`] remembers and does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerificationLimits {
    /// Verifications at a time; more wait.
    pub concurrent: usize,
    /// Verdicts remembered.
    pub verdicts: usize,
    /// A verdict is used at most this long.
    pub max_age: Duration,
}

impl Default for VerificationLimits {
    /// Two at a time, 1024 verdicts, ten minutes.
    fn default() -> Self {
        Self { concurrent: 2, verdicts: 1024, max_age: Duration::from_secs(600) }
    }
}

/// Verifies peers with cached collateral and remembers the verdicts.
pub struct EvidenceVerifier {
    verifier: Verifier,
    collateral: CollateralClient,
    verdicts: VerdictCache,
    slots: Semaphore,
    wanted: Mutex<Vec<PapersOf>>,
    snp: SnpGuests,
}

/// What is done with guests of SEV-SNP.
#[derive(Clone)]
enum SnpGuests {
    /// They are refused.
    Refused,
    /// They are believed if their evidence holds; certificates that it lacks are asked for, if there is anybody to ask.
    Accepted(Option<Box<ChipKeyClient>>),
}

impl std::fmt::Debug for EvidenceVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvidenceVerifier").field("collateral", &self.collateral).finish_non_exhaustive()
    }
}

/// What is judged: evidence, and the report data it must have.
struct Case {
    evidence: GuestEvidence,
    expected: Option<ReportData>,
    /// Last second of the certificate it came in.
    not_after: Option<u64>,
}

impl EvidenceVerifier {
    /// Verdicts of `verifier`; collateral of `collateral`, under the same roots.
    #[must_use]
    pub fn new(verifier: Verifier, collateral: CollateralClient, limits: VerificationLimits) -> Self {
        let collateral = collateral.with_anchors(verifier.anchors().clone());
        let verdicts = VerdictCache::new(limits.verdicts, limits.max_age.as_secs());
        Self {
            verifier,
            collateral,
            verdicts,
            slots: Semaphore::new(limits.concurrent.max(1)),
            wanted: Mutex::default(),
            snp: SnpGuests::Refused,
        }
    }

    /// Also believes SEV-SNP guests, whose identity is what their host bound to the launch: no event of theirs is signed, and nothing
    /// tells a report from before the boot from a later one. `chip_keys`: where the certificate of the chip's key comes from if the
    /// evidence does not carry it; without, it must.
    #[must_use]
    pub fn accepting_snp_guests(mut self, chip_keys: Option<ChipKeyClient>) -> Self {
        self.snp = SnpGuests::Accepted(chip_keys.map(Box::new));
        self
    }

    /// The collateral in use.
    #[must_use]
    pub fn collateral(&self) -> &CollateralClient {
        &self.collateral
    }

    /// Verifies the evidence in a TLS certificate, that it binds the certificate's key, and that the certificate is valid at `now`.
    ///
    /// A connection that resumed a session shows the certificate of the handshake it resumes: it is judged like any other.
    /// `vm_config`: the peer's configuration from elsewhere, used instead of the one inside when not empty. `now`: Unix seconds.
    pub async fn of_certificate(&self, leaf: &[u8], vm_config: &str, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let content = ContentKey::of(&[b"certificate", leaf, vm_config.as_bytes()]);
        match self.remembered(&content, now).await? {
            Some(verified) => Ok(verified),
            None => self.verify(content, certificate_case(leaf, vm_config, now)?, now).await,
        }
    }

    /// Verifies the evidence in a certificate request and that it binds the request's key.
    pub async fn of_request(&self, request: &CertRequest, vm_config: &str, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let content = ContentKey::of(&[b"request", &request.encode(), vm_config.as_bytes()]);
        if let Some(verified) = self.remembered(&content, now).await? {
            return Ok(verified);
        }
        let evidence = with_config(request.guest_evidence()?, vm_config);
        let case = Case { evidence, expected: Some(ra_tls_report_data(&request.pubkey)), not_after: None };
        self.verify(content, case, now).await
    }

    /// Verifies an attestation envelope that came without certificate, and that its report data is `report_data`.
    pub async fn of_envelope(&self, envelope: &[u8], report_data: &ReportData, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let content = ContentKey::of(&[b"envelope", envelope, report_data]);
        if let Some(verified) = self.remembered(&content, now).await? {
            return Ok(verified);
        }
        let evidence = GuestEvidence::decode(envelope).map_err(|error| match error {
            EnvelopeError::NotImplemented { .. } => CertificateError::NotImplemented(error),
            other => CertificateError::Evidence { reason: other.to_string() },
        })?;
        let case = Case { evidence, expected: Some(*report_data), not_after: None };
        self.verify(content, case, now).await
    }

    /// [`EvidenceVerifier::of_certificate`] without waiting: only with collateral that is in the cache, for use inside a handshake.
    ///
    /// Errors: [`Refusal::CollateralNotAtHand`] is remembered for [`EvidenceVerifier::with_collateral`].
    pub fn of_certificate_at_hand(&self, leaf: &[u8], now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let content = ContentKey::of(&[b"certificate", leaf, b""]);
        if let Some(found) = self.verdicts.find(&content, now)
            && self.papers_at_hand(found.papers_of)?.digest == found.papers
        {
            return Ok(found.evidence);
        }
        let case = certificate_case(leaf, "", now)?;
        let papers_of = self.papers_of(&case.evidence)?;
        let papers = self.papers_at_hand(papers_of)?;
        let evidence = Arc::new(self.verifier.verify_guest(&case.evidence, &papers.endorsements, now, case.expected.as_ref())?);
        self.verdicts.insert(content, Verdict { evidence: Arc::clone(&evidence), papers_of, papers: papers.digest }, case.not_after);
        Ok(evidence)
    }

    /// What is in the cache; nothing is needed where the evidence brought all along.
    fn papers_at_hand(&self, papers_of: Option<PapersOf>) -> Result<Arc<Held>, Refusal> {
        let Some(papers_of) = papers_of else { return Ok(Arc::clone(&NO_PAPERS)) };
        let held = match (papers_of, &self.snp) {
            (PapersOf::Platform(platform), _) => self.collateral.at_hand(platform),
            (PapersOf::ChipKey(name), SnpGuests::Accepted(Some(chip_keys))) => chip_keys.at_hand(name),
            (PapersOf::ChipKey(_), _) => None,
        };
        held.ok_or_else(|| {
            self.want(papers_of);
            Refusal::CollateralNotAtHand(papers_of)
        })
    }

    async fn papers(&self, papers_of: Option<PapersOf>) -> Result<Arc<Held>, Refusal> {
        match (papers_of, &self.snp) {
            (Some(PapersOf::Platform(platform)), _) => Ok(self.collateral.held(platform).await?),
            (Some(PapersOf::ChipKey(name)), SnpGuests::Accepted(Some(chip_keys))) => Ok(chip_keys.held(name).await?),
            (Some(PapersOf::ChipKey(_)), _) | (None, _) => Ok(Arc::clone(&NO_PAPERS)),
        }
    }

    /// Runs `call`. If it fails and a handshake of it lacked collateral, fetches that and runs it once more.
    pub async fn with_collateral<T, E>(&self, call: impl AsyncFn() -> Result<T, E>) -> Result<T, E> {
        let first = call().await;
        if first.is_ok() {
            return first;
        }
        if self.fetch_wanted().await { call().await } else { first }
    }

    /// Fetches the collateral that handshakes lacked. Whether there is any now, so that trying again makes sense.
    pub async fn fetch_wanted(&self) -> bool {
        let wanted = std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        let mut found = false;
        for papers_of in wanted {
            found |= self.papers(Some(papers_of)).await.is_ok();
        }
        found
    }

    /// Whose papers are needed; none for guests whose evidence carries all that is.
    fn papers_of(&self, evidence: &GuestEvidence) -> Result<Option<PapersOf>, Refusal> {
        match (evidence, &self.snp) {
            (GuestEvidence::Td(evidence), _) => Ok(Some(PapersOf::Platform(self.collateral.platform(&evidence.quote)?))),
            (_, SnpGuests::Refused) => Err(Refusal::SnpNotEnabled),
            (GuestEvidence::SevSnp(evidence), SnpGuests::Accepted(Some(_))) if evidence.certificates.is_empty() => {
                Ok(Some(chip_key(evidence)?))
            }
            (_, SnpGuests::Accepted(_)) => Ok(None),
        }
    }

    fn want(&self, papers_of: PapersOf) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.len() < MAX_WANTED && !wanted.contains(&papers_of) {
            wanted.push(papers_of);
        }
    }

    /// The verdict on the same content, if the collateral it was judged with is still the current one.
    async fn remembered(&self, content: &ContentKey, now: u64) -> Result<Option<Arc<VerifiedEvidence>>, Refusal> {
        let Some(found) = self.verdicts.find(content, now) else { return Ok(None) };
        let papers = self.papers(found.papers_of).await?;
        Ok((papers.digest == found.papers).then_some(found.evidence))
    }

    async fn verify(&self, content: ContentKey, case: Case, now: u64) -> Result<Arc<VerifiedEvidence>, Refusal> {
        let papers_of = self.papers_of(&case.evidence)?;
        let papers = self.papers(papers_of).await?;
        let slot = self.slots.acquire().await.map_err(|_| Refusal::BrokeOff)?;
        let (verifier, endorsements) = (self.verifier.clone(), Arc::clone(&papers.endorsements));
        let Case { evidence, expected, not_after } = case;
        let verdict = tokio::task::spawn_blocking(move || verifier.verify_guest(&evidence, &endorsements, now, expected.as_ref()));
        let evidence = Arc::new(verdict.await.map_err(|_| Refusal::BrokeOff)??);
        drop(slot);
        self.verdicts.insert(content, Verdict { evidence: Arc::clone(&evidence), papers_of, papers: papers.digest }, not_after);
        Ok(evidence)
    }
}

fn certificate_case(leaf: &[u8], vm_config: &str, now: u64) -> Result<Case, Refusal> {
    let certificate = RaTlsCertificate::parse(leaf)?;
    certificate.check_dates(now)?;
    let evidence = with_config(certificate.guest_evidence()?.ok_or(Refusal::NoEvidence)?, vm_config);
    Ok(Case { evidence, expected: Some(certificate.expected_report_data()), not_after: u64::try_from(certificate.not_after()).ok() })
}

/// The key whose certificate a report calls for.
fn chip_key(evidence: &SnpEvidence) -> Result<PapersOf, FetchError> {
    let report = UnverifiedReport::parse(&evidence.report)?;
    Ok(PapersOf::ChipKey(ChipKeyName::of_report(&report)?))
}

fn with_config(evidence: GuestEvidence, vm_config: &str) -> GuestEvidence {
    if vm_config.is_empty() { evidence } else { evidence.with_vm_config(vm_config) }
}
