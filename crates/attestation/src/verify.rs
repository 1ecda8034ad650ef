//! The verification: every check, in order, each failing by itself.

use std::sync::Arc;

use dstack_event_log::EventLog;
use dstack_manifest::{ComposeHash, OsImageHash, VmConfig};

use crate::{
    AcpiSource, AnchorKind, Check, CheckReport, Claims, Context, DocumentReference, Endorsements, Evidence, ImageBindingError,
    ImageReference, ImageRule, LaunchRegisters, Link, Platform, PlatformVerifier, Policy, Refusal, ReportData, TdAttributeFault, TdFields,
    TdxVerifier, TrustAnchors, VerifiedEvidence, VerifiedPlatform, VerifiedQuote, VerifyError,
    error::Reason,
    identity::{MrConfigIdMatch, match_mr_config_id, mr_config_document},
    image::{acpi_digests_of, are_known_tables, bound_measurement},
    platform::VerifiedTd,
    verified::{Guest, TdGuest},
};

/// Verifies evidence against trust anchors, a policy and reference values. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    anchors: TrustAnchors,
    pub(crate) policy: Policy,
    image_reference: Arc<dyn ImageReference>,
}

impl Verifier {
    /// A verifier that computes the registers of OS images from their measurement documents.
    #[must_use]
    pub fn new(anchors: TrustAnchors, policy: Policy) -> Self {
        Self { anchors, policy, image_reference: Arc::new(DocumentReference) }
    }

    /// Computes the registers of OS images with `reference` instead, such as from image files.
    #[must_use]
    pub fn with_image_reference(mut self, reference: Arc<dyn ImageReference>) -> Self {
        self.image_reference = reference;
        self
    }

    /// The anchors in use.
    #[must_use]
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// Verifies `evidence`.
    ///
    /// `endorsements`: the vendor's collateral for the quote's platform, from anywhere, unverified. `now`: Unix seconds.
    /// `expected_report_data`: the challenge; `None` only where the caller compares [`VerifiedEvidence::report_data`] itself.
    /// Errors: the first check that fails, and the ones that held before.
    pub fn verify(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        now: u64,
        expected_report_data: Option<&ReportData>,
    ) -> Result<VerifiedEvidence, VerifyError> {
        let mut run = Run::default();
        let (VerifiedTd { fields, fmspc, tcb_status }, platform) = self.check_td(&mut run, &evidence.quote, endorsements, now)?;
        run.step(Check::ReportData, check_report_data(&fields, evidence, expected_report_data))?;
        let log = run.verify_log(evidence, &fields)?;
        let claims = run.identity(evidence, &log, &fields)?;
        let (vm_config, proven) = self.verify_image(&mut run, evidence, (&fields, &log), &claims)?;
        let os_image_hash = proven.as_ref().map(|proven| proven.os_image_hash);
        let acpi_tables_computed = proven.is_some_and(|proven| proven.acpi_tables_computed);
        Ok(VerifiedEvidence {
            guest: Guest::Td(Box::new(TdGuest { fields, fmspc, log, acpi_tables_computed })),
            platform,
            tcb_status,
            claims,
            vm_config,
            os_image_hash,
            report: run.report,
            verified_at: now,
        })
    }

    /// Verifies a TDX quote alone: signatures up to the anchor, and the policy. For quotes of other stacks and for diagnosis.
    ///
    /// Errors: the first check that fails, and the ones that held before.
    pub fn verify_quote(&self, quote: &[u8], endorsements: &Endorsements, now: u64) -> Result<VerifiedQuote, VerifyError> {
        let mut run = Run::default();
        let (VerifiedTd { fields, tcb_status, .. }, platform) = self.check_td(&mut run, quote, endorsements, now)?;
        Ok(VerifiedQuote { fields, platform, tcb_status, report: run.report })
    }

    fn check_td(
        &self,
        run: &mut Run,
        quote: &[u8],
        endorsements: &Endorsements,
        now: u64,
    ) -> Result<(VerifiedTd, VerifiedPlatform), VerifyError> {
        let platform = self.check_platform(run, &TdxVerifier, quote, endorsements, now)?;
        match platform.td.as_deref().cloned() {
            Some(td) => Ok((td, platform)),
            None => Err(run.refuse(Check::QuoteFormat, Reason::Platform { platform: platform.platform() })),
        }
    }

    /// Verifies a quote, report, document or token alone: signatures up to the anchor, the policy, and the challenge it answers.
    /// For evidence of other stacks and for diagnosis; no authorization accepts the result.
    ///
    /// `expected_report_data`: the challenge; `None` only where the caller compares [`VerifiedPlatform::report_data`] itself.
    /// Errors: the first check that fails, and the ones that held before.
    pub fn verify_platform<V: PlatformVerifier>(
        &self,
        verifier: &V,
        evidence: &V::Evidence,
        endorsements: &Endorsements,
        now: u64,
        expected_report_data: Option<&[u8]>,
    ) -> Result<(VerifiedPlatform, CheckReport), VerifyError> {
        let mut run = Run::default();
        let platform = self.check_platform(&mut run, verifier, evidence, endorsements, now)?;
        match expected_report_data {
            Some(expected) if expected != platform.report_data() => return Err(run.refuse(Check::ReportData, Reason::ReportData)),
            Some(_) => run.report.pass(Check::ReportData, "equals the expected value"),
            None => run.report.skip(Check::ReportData, "left to the caller"),
        }
        Ok((platform, run.report))
    }

    pub(crate) fn check_platform<V: PlatformVerifier>(
        &self,
        run: &mut Run,
        verifier: &V,
        evidence: &V::Evidence,
        endorsements: &Endorsements,
        now: u64,
    ) -> Result<VerifiedPlatform, VerifyError> {
        let context = Context { anchors: &self.anchors, endorsements, now };
        let vendor = verifier.platform().vendor();
        let anchor = vendor.and_then(|vendor| self.anchors.select(vendor, |root| endorsements.contain(root)));
        run.anchor = anchor.map(|anchor| anchor.kind().clone());
        let platform = verifier.verify(evidence, &context).map_err(|refusal| run.refuse_link(verifier.platform(), refusal))?;
        let found =
            |link| platform.passed().iter().find(|passed| passed.link == link).map_or_else(String::new, |passed| passed.found.clone());
        run.report.pass(Check::QuoteFormat, found(Link::Format));
        run.report.pass(Check::QuoteSignature, platform.anchor().to_string());
        run.anchor = Some(platform.anchor().clone());
        let appraised = self.policy.appraise_into(&mut run.report, &platform, now);
        appraised.map_err(|(check, reason)| run.refuse(check, *reason))?;
        Ok(platform)
    }

    fn verify_image(
        &self,
        run: &mut Run,
        evidence: &Evidence,
        measured: (&TdFields, &EventLog),
        claims: &Claims,
    ) -> Result<(Option<VmConfig>, Option<ProvenImage>), VerifyError> {
        let config = parse_vm_config(&evidence.vm_config);
        let simulated = run.anchor.as_ref().is_some_and(AnchorKind::is_simulated);
        let outcome = config.as_ref().map_err(Clone::clone).and_then(|config| match config {
            Some(config) => self.prove_image(config, measured, simulated),
            None => Err(Reason::ImageBinding(ImageBindingError::NoImageHash)),
        });
        let parsed = config.ok().flatten();
        match outcome {
            Ok(proven) => {
                let caveat = if proven.acpi_tables_computed { "" } else { "; the content of its ACPI tables was not checked" };
                run.report.pass(Check::OsImage, format!("os image {}{caveat}", proven.os_image_hash));
                self.check_image_event(run, claims, proven.os_image_hash)?;
                let os_image_hash = proven.os_image_hash;
                if self.policy.allowed_images.as_ref().is_some_and(|allowed| !allowed.contains(&os_image_hash)) {
                    return Err(run.refuse(Check::OsImage, Reason::ImageNotAllowed { os_image_hash }));
                }
                Ok((parsed, Some(proven)))
            }
            Err(reason) if self.policy.image == ImageRule::WherePossible && cannot_be_checked(&reason) => {
                run.report.skip(Check::OsImage, reason.to_string());
                Ok((parsed, None))
            }
            Err(reason) => Err(run.refuse(Check::OsImage, reason)),
        }
    }

    /// The image a KMS told the guest must be the one that the registers prove; a relying party that only reports may go on.
    fn check_image_event(&self, run: &mut Run, claims: &Claims, proven: OsImageHash) -> Result<(), VerifyError> {
        match claims.measured_os_image_hash {
            None => run.report.skip(Check::OsImageEvent, "the guest has not measured an image hash"),
            Some(measured) if measured == proven => run.report.pass(Check::OsImageEvent, "equals the proven image"),
            Some(measured) => {
                let reason = Reason::MeasuredImage { measured, proven };
                if self.policy.image == ImageRule::Required {
                    return Err(run.refuse(Check::OsImageEvent, reason));
                }
                run.report.skip(Check::OsImageEvent, reason.to_string());
            }
        }
        Ok(())
    }

    fn prove_image(&self, config: &VmConfig, (fields, log): (&TdFields, &EventLog), simulated: bool) -> Result<ProvenImage, Reason> {
        let document = bound_measurement(config);
        let os_image_hash = match &document {
            Ok((os_image_hash, _)) | Err(ImageBindingError::NoDocument { os_image_hash }) => *os_image_hash,
            Err(error) => return Err(error.clone().into()),
        };
        let logged = acpi_digests_of(log);
        let acpi_tables_computed = simulated || logged.is_some_and(|digests| are_known_tables(config, &digests));
        let acpi = match logged {
            _ if simulated => Ok(AcpiSource::SoftwareTee),
            Some(digests) if acpi_tables_computed || self.policy.accept_unchecked_acpi => Ok(AcpiSource::Log(digests)),
            Some(_) => Err(Reason::AcpiTables { why: "the policy does not accept unchecked tables" }),
            None => Err(Reason::AcpiTables { why: "the log does not name them" }),
        };
        let expected = match document {
            Ok((_, image)) => acpi.map(|acpi| self.image_reference.expected(&image, config, acpi))?,
            // Nobody has the image: that says more than what is wrong with the tables.
            Err(error) => {
                let by_hash = acpi.ok().and_then(|acpi| self.image_reference.expected_by_hash(&os_image_hash, config, acpi));
                by_hash.ok_or_else(|| Reason::from(error))?
            }
        };
        let expected = expected.map_err(|reason| Reason::ImageReference { os_image_hash, reason })?;
        let [rtmr0, rtmr1, rtmr2, _] = fields.rtmr.0;
        let got = LaunchRegisters { mrtd: fields.mrtd, rtmr: [rtmr0, rtmr1, rtmr2] };
        if expected == got {
            return Ok(ProvenImage { os_image_hash, acpi_tables_computed });
        }
        let (register, detail) = first_difference(&expected, &got);
        Err(Reason::ImageRegisters { os_image_hash, register, detail })
    }
}

/// An image that the registers prove.
struct ProvenImage {
    os_image_hash: OsImageHash,
    acpi_tables_computed: bool,
}

/// Missing material and shapes nobody can compute are caveats; wrong bindings and wrong registers are refusals.
fn cannot_be_checked(reason: &Reason) -> bool {
    use crate::ImageBindingError::{NoDocument, NoImageHash};
    matches!(
        reason,
        Reason::VmConfig { .. }
            | Reason::ImageReference { .. }
            | Reason::AcpiTables { .. }
            | Reason::ImageBinding(NoImageHash | NoDocument { .. })
    )
}

fn first_difference(expected: &LaunchRegisters, got: &LaunchRegisters) -> (&'static str, String) {
    let pairs = [
        ("MRTD", &expected.mrtd, &got.mrtd),
        ("RTMR0", &expected.rtmr[0], &got.rtmr[0]),
        ("RTMR1", &expected.rtmr[1], &got.rtmr[1]),
        ("RTMR2", &expected.rtmr[2], &got.rtmr[2]),
    ];
    let different = pairs.into_iter().find(|(_, expected, got)| expected != got);
    different.map_or(("no register", String::new()), |(name, expected, got)| {
        (name, format!(" (expected {}, quoted {})", hex::encode(expected), hex::encode(got)))
    })
}

pub(crate) fn parse_vm_config(text: &str) -> Result<Option<VmConfig>, Reason> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|error| Reason::VmConfig { reason: error.to_string() })
}

fn check_report_data(fields: &TdFields, evidence: &Evidence, expected: Option<&ReportData>) -> Result<String, Reason> {
    let quoted = &fields.report_data;
    if expected.is_some_and(|expected| expected != quoted) || evidence.report_data.is_some_and(|claimed| claimed != *quoted) {
        return Err(Reason::ReportData);
    }
    Ok(if expected.is_some() { "equals the expected value".into() } else { "left to the caller".into() })
}

/// State of one verification.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) report: CheckReport,
    anchor: Option<AnchorKind>,
}

impl Run {
    /// A refusal by a platform's verifier, as the check it belongs to.
    fn refuse_link(&mut self, platform: Platform, refusal: Refusal) -> VerifyError {
        let check = match refusal.link {
            Link::Format => Check::QuoteFormat,
            Link::ReportData => Check::ReportData,
            Link::EventLog => Check::RuntimeLog,
            Link::Attributes => Check::TdAttributes,
            _ => Check::QuoteSignature,
        };
        if check != Check::QuoteFormat {
            self.report.pass(Check::QuoteFormat, format!("{platform} evidence"));
        }
        if check != Check::TdAttributes {
            return self.refuse(check, refusal.into());
        }
        self.report.pass(Check::QuoteSignature, "holds");
        let reason = if platform == Platform::Tdx { TdAttributeFault::in_words(&refusal.detail).into() } else { refusal.into() };
        self.refuse(check, reason)
    }

    pub(crate) fn refuse(&self, check: Check, reason: Reason) -> VerifyError {
        VerifyError { check, reason: Box::new(reason), report: Box::new(self.report.clone()), anchor: self.anchor.clone() }
    }

    pub(crate) fn try_step<T, E: Into<Reason>>(&self, check: Check, result: Result<T, E>) -> Result<T, VerifyError> {
        result.map_err(|error| self.refuse(check, error.into()))
    }

    pub(crate) fn step<E: Into<Reason>>(&mut self, check: Check, result: Result<String, E>) -> Result<(), VerifyError> {
        let found = self.try_step(check, result)?;
        self.report.pass(check, found);
        Ok(())
    }

    /// RTMR3 must replay. RTMR0 to RTMR2 must replay if the log has their events; a log without them leaves these registers to the image check.
    fn verify_log(&mut self, evidence: &Evidence, fields: &TdFields) -> Result<EventLog, VerifyError> {
        let log = self.try_step(Check::RuntimeLog, EventLog::new(evidence.event_log.clone()))?;
        let mismatch = log.check_registers(&fields.rtmr).err();
        self.try_step(Check::RuntimeLog, log.check_registers(&with_register_3(log.registers(), &fields.rtmr)))?;
        self.report.pass(Check::RuntimeLog, format!("{} runtime events replay to RTMR3", log.runtime_events().count()));
        match (mismatch, covers_boot(&log)) {
            (None, _) => self.report.pass(Check::BootLog, "boot events replay to RTMR0, RTMR1 and RTMR2"),
            (Some(found), true) => return Err(self.refuse(Check::BootLog, found.into())),
            (Some(_), false) => self.report.skip(Check::BootLog, "the log is reduced to what the OS image does not determine"),
        }
        Ok(log)
    }

    fn identity(&mut self, evidence: &Evidence, log: &EventLog, fields: &TdFields) -> Result<Claims, VerifyError> {
        let claims = self.try_step(Check::Identity, Claims::from_log(log))?;
        if let Some(document) = &evidence.app_compose {
            let got = ComposeHash::of(document);
            if claims.compose_hash != Some(got) {
                return Err(self.refuse(Check::Identity, Reason::AppCompose { got, measured: claims.compose_hash }));
            }
        }
        self.report.pass(Check::Identity, claims.to_string());
        match match_mr_config_id(&fields.mr_config_id, &claims, mr_config_document(&evidence.vm_config).as_deref()) {
            MrConfigIdMatch::Agrees(how) => self.report.pass(Check::MrConfigId, how),
            MrConfigIdMatch::NotSet => self.report.skip(Check::MrConfigId, "the host set none"),
            MrConfigIdMatch::Undecided(why) => self.report.skip(Check::MrConfigId, why),
            MrConfigIdMatch::Differs => return Err(self.refuse(Check::MrConfigId, Reason::MrConfigId)),
        }
        Ok(claims)
    }
}

/// A log counts as covering the boot unless it is a stripped one: no event of RTMR1 and RTMR2, and of RTMR0 at most the ACPI tables.
fn covers_boot(log: &EventLog) -> bool {
    log.events().iter().any(|event| matches!(event.imr, 0..=2) && !(event.imr == 0 && event.event_payload == b"ACPI DATA"))
}

fn with_register_3(replayed: &dstack_event_log::Registers, quoted: &dstack_event_log::Registers) -> dstack_event_log::Registers {
    let [rtmr0, rtmr1, rtmr2, _] = replayed.0;
    let [.., rtmr3] = quoted.0;
    dstack_event_log::Registers([rtmr0, rtmr1, rtmr2, rtmr3])
}
