//! From the bytes of a request to an answer.

use std::sync::Arc;

use dstack_api::{UserFacing as _, verifier::VerifyResponse};
use dstack_attestation::{Evidence, ImageRule, Policy, TrustAnchors, VerifiedEvidence, Verifier};
use dstack_manifest::{OsImageHash, VmConfig};
use dstack_os_image::fetch::{FetchError as ImageError, FetchedImage, ImageFetcher};
use dstack_ra_tls::collateral::{CollateralCounters, FetchError};
use dstack_verdict::{Kind, Mark, Question, Subject, Verdict, judge_by, refuse_before_papers};
use tokio::sync::Semaphore;

use crate::{
    Refusal,
    answer::{respond, signature_check, undecided},
    config::Settings,
    debug,
    images::{Computed, FilesReference},
    papers::Papers,
};

/// The source of evidence, for people.
const SOURCE: &str = "request";

pub(crate) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Judges evidence; everything it needs besides is its own. Clones share it.
#[derive(Clone)]
pub struct Verification {
    anchors: TrustAnchors,
    root_origin: String,
    policy: Policy,
    policy_name: String,
    papers: Papers,
    images: Option<Arc<ImageFetcher>>,
    computed: Arc<Computed>,
    slots: Arc<Semaphore>,
    clock: Clock,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification").field("policy", &self.policy_name).field("images", &self.images).finish_non_exhaustive()
    }
}

impl Verification {
    /// As `settings` say. `images`: where OS images come from, if from anywhere.
    pub(crate) fn new(settings: &Settings, papers: Papers, images: Option<ImageFetcher>, clock: Clock) -> Self {
        let root = settings.file.danger.simulated_root.as_ref();
        Self {
            anchors: settings.anchors.clone(),
            root_origin: root.map(|path| format!("[danger] simulated_root = {}", path.display())).unwrap_or_default(),
            policy: settings.policy.clone(),
            policy_name: settings.policy_name.clone(),
            papers: papers.with_clock(&clock),
            images: images.map(Arc::new),
            computed: Arc::default(),
            slots: Arc::new(Semaphore::new(settings.file.max_verifications)),
            clock,
        }
    }

    /// What was fetched so far: collateral, and downloads of images.
    pub(crate) fn counters(&self) -> (CollateralCounters, u64) {
        (self.papers.counters(), self.images.as_ref().map_or(0, |images| images.downloads()))
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// The answer to a request with this body, whatever form of evidence it is.
    ///
    /// Errors: the body holds no evidence.
    pub async fn verify(&self, body: Vec<u8>) -> Result<VerifyResponse, Refusal> {
        let (subject, debug) = self.on_cpu(move || Subject::recognise(&body).map(|subject| (subject, asks_for_debug(&body)))).await??;
        let subject = Arc::new(subject);
        let mut answer = self.judge(Arc::clone(&subject)).await?;
        if debug && matches!(subject.kind, Kind::Td(_)) {
            let image = self.cached_image(&subject);
            answer = self.on_cpu(move || with_debug(answer, &subject, image.as_deref())).await?;
        }
        Ok(answer)
    }

    /// The answer about a subject.
    ///
    /// Errors: our own fault.
    pub async fn judge(&self, subject: Arc<Subject>) -> Result<VerifyResponse, Refusal> {
        let mut question = self.question();
        if let Some(refused) = refuse_before_papers(&subject, &question, SOURCE) {
            return Ok(respond(&refused, None, None));
        }
        match self.papers.endorsements(&subject).await {
            Ok(endorsements) => question.endorsements = endorsements,
            Err(error) => return Ok(self.without_collateral(&subject, &error)),
        }
        let question = Arc::new(question);
        let Some(wanted) = self.image_to_fetch(&subject) else {
            let (verdict, evidence) = self.judge_with(subject, question, None).await?;
            return Ok(respond(&verdict, evidence.as_ref(), None));
        };
        // Everything else first: nobody downloads an image for evidence that does not hold.
        let lenient =
            Arc::new(Question { policy: Policy { image: ImageRule::WherePossible, ..self.policy.clone() }, ..(*question).clone() });
        let (mut verdict, evidence) = self.judge_with(Arc::clone(&subject), lenient, None).await?;
        if evidence.is_none() {
            return Ok(respond(&verdict, None, None));
        }
        match self.image(wanted).await {
            Ok(image) => {
                let (verdict, evidence) = self.judge_with(subject, question, Some(Arc::clone(&image))).await?;
                Ok(respond(&verdict, evidence.as_ref(), Some(image.metadata())))
            }
            Err(error) => {
                note_missing_image(&mut verdict, &error, self.policy.image == ImageRule::Required);
                Ok(respond(&verdict, evidence.as_ref(), None))
            }
        }
    }

    fn question(&self) -> Question {
        Question {
            policy_name: self.policy_name.clone(),
            anchors: self.anchors.clone(),
            root_origin: self.root_origin.clone(),
            policy: self.policy.clone(),
            ..Question::open(self.now())
        }
    }

    /// A chain that does not hold is the evidence's fault; a source that does not answer is not.
    fn without_collateral(&self, subject: &Subject, error: &FetchError) -> VerifyResponse {
        let mut verdict = Verdict::blank(SOURCE, &self.policy_name, self.now());
        verdict.platform = subject.platform_name().into();
        if !error.is_of_evidence() {
            tracing::warn!(%error, "no verdict: no collateral");
            return undecided(verdict, error.to_string(), error.fix());
        }
        let (name, says) = signature_check(&verdict.platform);
        verdict.check(name, Mark::Failed, says, error.to_string());
        verdict.fix = error.fix();
        verdict.conclude(false);
        respond(&verdict, None, None)
    }

    /// The image that the evidence names without carrying its measurement document.
    fn image_to_fetch(&self, subject: &Subject) -> Option<OsImageHash> {
        let Kind::Td(evidence) = &subject.kind else { return None };
        self.images.as_ref()?;
        named_without_document(evidence)
    }

    /// The image that a diagnosis compares with, if it is at hand already.
    fn cached_image(&self, subject: &Subject) -> Option<Arc<FetchedImage>> {
        let hash = self.image_to_fetch(subject)?;
        self.images.as_ref()?.cached_image(&hash)
    }

    /// In a task of its own: a download goes on when whoever asked has gone.
    async fn image(&self, hash: OsImageHash) -> Result<Arc<FetchedImage>, ImageError> {
        let Some(images) = self.images.clone() else { return Err(ImageError::BrokeOff) };
        tokio::spawn(async move { images.image(&hash).await }).await.map_err(|_| ImageError::BrokeOff)?
    }

    async fn judge_with(
        &self,
        subject: Arc<Subject>,
        question: Arc<Question>,
        image: Option<Arc<FetchedImage>>,
    ) -> Result<(Verdict, Option<VerifiedEvidence>), Refusal> {
        let mut verifier = Verifier::new(question.anchors.clone(), question.policy.clone());
        if let Some(image) = image {
            verifier = verifier.with_image_reference(Arc::new(FilesReference::new(image, Arc::clone(&self.computed))));
        }
        self.on_cpu(move || judge_by(&verifier, &subject, &question, SOURCE)).await
    }

    /// Runs `work` away from the event loop, a few at a time.
    async fn on_cpu<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        let _slot = self.slots.acquire().await.map_err(|_| Refusal::BrokeOff)?;
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "verification broke off");
            Refusal::BrokeOff
        })
    }
}

fn asks_for_debug(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Wanted {
        #[serde(default)]
        debug: Option<bool>,
    }
    serde_json::from_slice::<Wanted>(body).is_ok_and(|wanted| wanted.debug == Some(true))
}

fn with_debug(mut answer: VerifyResponse, subject: &Subject, image: Option<&FetchedImage>) -> VerifyResponse {
    if let Kind::Td(evidence) = &subject.kind {
        debug::add(&mut answer.details, evidence, image);
    }
    answer
}

fn named_without_document(evidence: &Evidence) -> Option<OsImageHash> {
    let config: VmConfig = serde_json::from_str(&evidence.vm_config).ok()?;
    config.os_image_hash.filter(|_| config.tdx_measurement.is_none())
}

/// Says in the verdict why there is no image.
fn note_missing_image(verdict: &mut Verdict, error: &ImageError, is_required: bool) {
    tracing::warn!(%error, "os image cannot be had");
    for line in &mut verdict.checks {
        if line.name == "os-image" && !matches!(line.outcome, Mark::Failed) {
            line.outcome = if is_required { Mark::Failed } else { Mark::Unknown };
            line.detail = error.to_string();
        }
    }
    if is_required {
        verdict.reason.clear();
        verdict.fix = error.fix();
        verdict.conclude(false);
    }
}
