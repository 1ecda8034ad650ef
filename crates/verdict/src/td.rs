//! A dstack VM under TDX: quote, log, image, document, keys.

use dstack_api::UserFacing as _;
use dstack_attestation::{
    Check, CheckOutcome, CheckReport, Evidence, KeyProvider, TcbStatus, TdFields, UnverifiedQuote, VerifiedEvidence, Verifier, VerifyError,
};
use dstack_manifest::{AppCompose, AppId, ComposeHash, OsImageHash};
use sha2::{Digest as _, Sha256};

use crate::{
    Anchor, Claims, Identity, Kind, Mark, Question, Subject, Verdict, containers, guest,
    hardware::says_check,
    judge::{is_simulated, vendor_anchor},
};

/// The library's checks in order, with what each says when it holds.
const CHECKS: [(Check, &str); 10] = [
    (Check::QuoteFormat, "the evidence holds a TDX quote"),
    (Check::QuoteSignature, "the quote is signed by a TEE of a trusted vendor"),
    (Check::TdAttributes, "the VM cannot be debugged or migrated"),
    (Check::TcbPolicy, "the machine's firmware is acceptable"),
    (Check::ReportData, "the quote answers our challenge"),
    (Check::RuntimeLog, "the log of the guest matches the quote"),
    (Check::BootLog, "the log of the boot matches the quote"),
    (Check::Identity, "the app's identity is measured"),
    (Check::MrConfigId, "the host launched the VM for this app"),
    (Check::OsImage, "firmware, kernel, initrd and command line are those of an OS image"),
];

/// Whether there is more than a quote: a log, a configuration or a document.
pub(crate) fn is_of_dstack(evidence: &Evidence) -> bool {
    !evidence.event_log.is_empty() || evidence.app_compose.is_some()
}

pub(crate) fn judge(verdict: Verdict, evidence: &Evidence, subject: &Subject, question: &Question) -> Verdict {
    judge_by(&Verifier::new(question.anchors.clone(), question.policy.clone()), verdict, evidence, subject, question).0
}

/// [`judge`] by a verifier of the caller's; also what was verified.
pub(crate) fn judge_by(
    verifier: &Verifier,
    verdict: Verdict,
    evidence: &Evidence,
    subject: &Subject,
    question: &Question,
) -> (Verdict, Option<VerifiedEvidence>) {
    let expected = expected_report_data(subject, question);
    match verifier.verify(evidence, &question.endorsements, question.now, expected.as_ref()) {
        Ok(verified) => {
            let verdict = describe(verdict, evidence, subject, question, &verified);
            (conclude(verdict, evidence, question, &verified, verified.os_image_hash()), Some(verified))
        }
        Err(error) => (refuse(verdict, &evidence.quote, question, &error), None),
    }
}

/// What the report data must be: the hash of the certificate's key, else the answer to the challenge.
pub(crate) fn expected_report_data(subject: &Subject, question: &Question) -> Option<dstack_attestation::ReportData> {
    let binding = subject.certificate.as_ref().map(crate::EvidenceCertificate::report_data);
    binding.or(question.challenge.as_ref().map(crate::Challenge::report_data))
}

/// A quote without anything beside it: whose machine, what was measured, not what that means.
pub(crate) fn judge_quote(mut verdict: Verdict, quote: &[u8], subject: &Subject, question: &Question) -> Verdict {
    let verifier = Verifier::new(question.anchors.clone(), question.policy.clone());
    let verified = match verifier.verify_quote(quote, &question.endorsements, question.now) {
        Ok(verified) => verified,
        Err(error) => return refuse(verdict, quote, question, &error),
    };
    fill_checks(&mut verdict, verified.report(), None);
    claims_of(&mut verdict.claims, verified.fields());
    verdict.tcb_status = Some(verified.tcb_status().to_string());
    verdict.advisory_ids = verified.advisory_ids().to_vec();
    verdict.trust_anchors.push(vendor_anchor(verified.anchor(), question));
    let expected = expected_report_data(subject, question);
    bare_quote_lines(&mut verdict, &expected, verified.fields());
    tcb_caveats(&mut verdict, verified.tcb_status(), verified.advisory_ids());
    check_second_challenge(&mut verdict, subject, question, verified.fields());
    if is_simulated(verified.anchor()) {
        verdict.caveats.push("The TEE is simulated: nothing in this VM is protected from the machine it runs on.".to_owned());
    }
    crate::platforms::expected_app_is_unknown(&mut verdict, question);
    verdict.conclude(is_simulated(verified.anchor()));
    verdict
}

/// The checks that a quote alone gives no occasion for.
fn bare_quote_lines(verdict: &mut Verdict, expected: &Option<dstack_attestation::ReportData>, fields: &TdFields) {
    for line in &mut verdict.checks {
        let (outcome, detail) = match (&*line.name, expected) {
            ("report-data", Some(expected)) if *expected == fields.report_data => (Mark::Passed, "equals what you gave"),
            ("report-data", Some(_)) => (Mark::Failed, "the quote's report data is not the expected one"),
            ("report-data", None) => (Mark::Skipped, "no challenge was given, so nothing shows when it was made"),
            ("runtime-log" | "boot-log" | "identity" | "mr-config-id" | "os-image", _) => {
                (Mark::Skipped, "there is no event log, so nothing says which software runs")
            }
            _ => continue,
        };
        line.outcome = outcome;
        detail.clone_into(&mut line.detail);
    }
}

pub(crate) fn refuse(mut verdict: Verdict, quote: &[u8], question: &Question, error: &VerifyError) -> Verdict {
    verdict.reason = format!("{}: {}", error.check.name(), error.reason);
    verdict.fix = error.fix();
    verdict.trust_anchors.extend(error.anchor.as_ref().map(|anchor| vendor_anchor(anchor, question)));
    fill_checks(&mut verdict, &error.report, Some((error.check, error.reason.to_string())));
    if let Ok(quote) = UnverifiedQuote::parse(quote) {
        claims_of(&mut verdict.claims, quote.fields());
    }
    verdict.conclude(false);
    verdict
}

/// What the library found, in lines, claims and caveats.
pub(crate) fn describe(
    mut verdict: Verdict,
    evidence: &Evidence,
    subject: &Subject,
    question: &Question,
    verified: &VerifiedEvidence,
) -> Verdict {
    fill_checks(&mut verdict, verified.report(), None);
    if matches!(subject.kind, Kind::GcpTdx(_)) {
        // Google's firmware is not public, so these registers name no image; the TPM does.
        verdict.checks.retain(|line| line.name != Check::OsImage.name());
    }
    verdict.identity = identity(evidence, verified);
    if let Some(fields) = verified.td_fields() {
        claims_of(&mut verdict.claims, fields);
        check_second_challenge(&mut verdict, subject, question, fields);
    }
    identity_claims(&mut verdict.claims, verified);
    verdict.tcb_status = Some(verified.tcb_status().to_string());
    verdict.advisory_ids = verified.advisory_ids().to_vec();
    verdict.valid_until = Some(verified.collateral_expires_at());
    verdict.trust_anchors.push(vendor_anchor(verified.anchor(), question));
    library_caveats(&mut verdict, subject, question, verified);
    verdict
}

/// What the user expects, and the word. `os_image_hash`: the image that the evidence proves.
pub(crate) fn conclude(
    mut verdict: Verdict,
    evidence: &Evidence,
    question: &Question,
    verified: &VerifiedEvidence,
    os_image_hash: Option<&OsImageHash>,
) -> Verdict {
    check_image(&mut verdict, question, os_image_hash);
    check_document(&mut verdict, evidence, question, verified);
    check_kms(&mut verdict, question, verified.claims().key_provider.as_ref(), "key-provider event");
    verdict.conclude(is_simulated(verified.anchor()));
    verdict
}

/// See [`crate::refuse_before_papers`].
pub(crate) fn refuse_before_papers(mut verdict: Verdict, quote: &[u8], question: &Question) -> Option<Verdict> {
    let parsed = match UnverifiedQuote::parse(quote) {
        Ok(parsed) => parsed,
        Err(error) => {
            verdict.reason = format!("the evidence does not hold a TDX quote: {error}");
            "get the evidence again, whole and unchanged".clone_into(&mut verdict.fix);
            fill_checks(&mut verdict, &CheckReport::default(), Some((Check::QuoteFormat, error.to_string())));
            verdict.conclude(false);
            return Some(verdict);
        }
    };
    let chain = parsed.pck_chain().ok()?;
    let root = chain.last()?;
    if chain.len() < 2 || question.anchors.find(root).is_some() {
        return None;
    }
    let name = crate::certificate::common_name(root);
    verdict.reason = format!("the quote's certificate chain ends in `{name}`, which is not a root that this policy trusts");
    "if this is your own software TEE, give its root with --root, or put it under [danger] simulated_root of a verify.toml and pass that with --config"
        .clone_into(&mut verdict.fix);
    let anchor = format!("UNKNOWN root `{name}`, SHA-256 {}", hex::encode(Sha256::digest(root)));
    verdict.trust_anchors.push(Anchor::new("hardware vendor", anchor, "named by the evidence itself; not trusted"));
    fill_checks(&mut verdict, &CheckReport::default(), Some((Check::QuoteSignature, "the root is not trusted".to_owned())));
    if let Some(first) = verdict.checks.first_mut() {
        (first.outcome, first.detail) = (Mark::Passed, format!("TDX quote version {}", parsed.version()));
    }
    claims_of(&mut verdict.claims, parsed.fields());
    verdict.conclude(false);
    Some(verdict)
}

/// One line per check of the library: made, failed, or not reached. Demands that only some policies make are shown only then.
fn fill_checks(verdict: &mut Verdict, report: &CheckReport, failed: Option<(Check, String)>) {
    let is_usual = |check: Check| CHECKS.iter().any(|(usual, _)| *usual == check);
    let mut lines = CHECKS.to_vec();
    let made = report.checks().iter().map(|(check, _)| *check).chain(failed.as_ref().map(|(check, _)| *check));
    lines.extend(made.filter(|check| !is_usual(*check)).map(|check| (check, says_check(check))));
    lines.dedup_by_key(|(check, _)| *check);
    for (check, says) in lines {
        let (outcome, detail) = match (report.outcome(check), &failed) {
            (_, Some((at, why))) if *at == check => (Mark::Failed, why.clone()),
            (Some(CheckOutcome::Passed(found)), _) => (Mark::Passed, found.clone()),
            (Some(CheckOutcome::NotChecked(why)), _) => (Mark::Unknown, why.clone()),
            (None, _) => (Mark::Skipped, "not reached".to_owned()),
        };
        verdict.check(check.name(), outcome, says, detail);
    }
}

fn library_caveats(verdict: &mut Verdict, subject: &Subject, question: &Question, verified: &VerifiedEvidence) {
    let mut caveats = Vec::new();
    for line in &mut verdict.checks {
        match &*line.name {
            "quote-signature" if is_simulated(verified.anchor()) => {
                line.outcome = Mark::Remark;
                caveats.push("The TEE is simulated: nothing in this VM is protected from the machine it runs on.".to_owned());
            }
            "report-data" => caveats.extend(freshness(line, subject, question)),
            // The image check compares the same registers with computed ones, which is more than any log can show.
            "boot-log" if line.outcome == Mark::Unknown && verified.os_image_hash().is_some() => {
                line.outcome = Mark::Passed;
                "not in the log; the registers are computed from the OS image below".clone_into(&mut line.detail);
            }
            "os-image" if line.outcome == Mark::Passed && !verified.acpi_tables_computed() => {
                line.outcome = Mark::Remark;
                caveats.push("The ACPI tables that the host gave the VM are measured, but they are of no machine we know: nobody has looked at them.".to_owned());
            }
            "os-image-event" if line.outcome == Mark::Unknown => line.outcome = Mark::Skipped,
            "freshness" | "debug" if line.outcome == Mark::Unknown => line.outcome = Mark::Skipped,
            _ if line.outcome == Mark::Unknown => caveats.push(format!("Not checked that {}: {}.", line.says, line.detail)),
            _ => {}
        }
    }
    verdict.caveats.extend(caveats);
    tcb_caveats(verdict, verified.tcb_status(), verified.advisory_ids());
}

fn tcb_caveats(verdict: &mut Verdict, status: TcbStatus, advisories: &[String]) {
    if status == TcbStatus::UpToDate && advisories.is_empty() {
        return;
    }
    if let Some(line) = verdict.checks.iter_mut().find(|line| line.name == "tcb-policy") {
        line.outcome = Mark::Remark;
    }
    let named = if advisories.is_empty() { String::new() } else { format!("; advisories {}", advisories.join(", ")) };
    verdict.caveats.push(format!("The machine's firmware is not up to date: {status}{named}."));
}

/// What the report data shows; a caveat where it shows nothing about time.
fn freshness(line: &mut crate::CheckLine, subject: &Subject, question: &Question) -> Option<String> {
    if subject.certificate.is_some() {
        line.says = "the quote was made for the key of this certificate".into();
        "binds the certificate's key".clone_into(&mut line.detail);
        return question
            .challenge
            .is_none()
            .then(|| "The evidence is as old as its certificate: nothing shows that the VM still runs as it did then.".to_owned());
    }
    match &question.challenge {
        None => {
            line.outcome = Mark::Skipped;
            "no challenge was given".clone_into(&mut line.detail);
            Some(
                "Nothing shows when this evidence was made: give the challenge it answers with --nonce, or verify the running app."
                    .to_owned(),
            )
        }
        Some(challenge) => {
            let found = if challenge.is_fresh { "a fresh random challenge" } else { "the challenge you gave" };
            found.clone_into(&mut line.detail);
            None
        }
    }
}

/// A certificate's evidence binds its key; a challenge given as well must be the very same bytes.
fn check_second_challenge(verdict: &mut Verdict, subject: &Subject, question: &Question, fields: &TdFields) {
    let (Some(_), Some(challenge)) = (&subject.certificate, &question.challenge) else { return };
    let (outcome, detail) = if challenge.report_data() == fields.report_data {
        (Mark::Passed, "equals the challenge you gave")
    } else {
        (Mark::Failed, "the evidence of a certificate answers no other challenge than its key")
    };
    verdict.check("challenge", outcome, "the evidence answers your challenge", detail);
}

pub(crate) fn claims_of(claims: &mut Claims, fields: &TdFields) {
    claims.push_bytes("mrtd", &fields.mrtd);
    for (name, value) in ["rtmr0", "rtmr1", "rtmr2", "rtmr3"].into_iter().zip(&fields.rtmr.0) {
        claims.push_bytes(name, value);
    }
    claims.push_bytes("mr_config_id", &fields.mr_config_id);
    claims.push_bytes("mr_owner", &fields.mr_owner);
    claims.push_bytes("mr_owner_config", &fields.mr_owner_config);
    claims.push_bytes("mr_seam", &fields.mr_seam);
    claims.push_bytes("mr_signer_seam", &fields.mr_signer_seam);
    if let Some(service) = &fields.mr_service_td {
        claims.push_bytes("mr_service_td", service);
    }
    claims.push_bytes("td_attributes", &fields.td_attributes);
    claims.push_bytes("xfam", &fields.xfam);
    claims.push_bytes("seam_attributes", &fields.seam_attributes);
    claims.push_bytes("tee_tcb_svn", &fields.tee_tcb_svn);
    if let Some(svn) = &fields.tee_tcb_svn2 {
        claims.push_bytes("tee_tcb_svn2", svn);
    }
    claims.push_bytes("report_data", &fields.report_data);
}

fn identity_claims(claims: &mut Claims, verified: &VerifiedEvidence) {
    if let Some(fmspc) = verified.fmspc() {
        claims.push_bytes("fmspc", fmspc);
    }
    claims.push_bytes("device_id", &verified.device_id());
    guest::measured_claims(claims, verified.claims());
    if let Some(hash) = verified.os_image_hash() {
        claims.push("os_image_hash", hash.to_string());
    }
}

/// Whether the image that the evidence proves is one the user knows.
pub(crate) fn check_image(verdict: &mut Verdict, question: &Question, proven: Option<&OsImageHash>) {
    const SAYS: &str = "the OS image is one that you know";
    let Some(hash) = proven else {
        verdict.trust_anchors.push(Anchor::new("OS image", "UNKNOWN", "the evidence proves none"));
        if !question.expectations.os_images.is_empty() {
            verdict.check("os-image-known", Mark::Failed, SAYS, "the evidence proves no OS image");
        }
        return;
    };
    let (outcome, detail, origin) = match question.expectations.os_images.get(hash) {
        Some(name) => (Mark::Passed, name.clone(), name.clone()),
        None if question.expectations.os_images.is_empty() => {
            verdict
                .caveats
                .push(format!("The VM runs OS image {hash}; whether that image is a good one is not known here (no reference values)."));
            (Mark::Unknown, "there are no reference values".to_owned(), "no reference values; compare it with the publisher's".to_owned())
        }
        None => (Mark::Failed, format!("OS image {hash} is not among the reference values"), "not among the reference values".to_owned()),
    };
    verdict.check("os-image-known", outcome, SAYS, detail);
    verdict.trust_anchors.push(Anchor::new("OS image", hash.to_string(), origin));
}

fn check_document(verdict: &mut Verdict, evidence: &Evidence, question: &Question, verified: &VerifiedEvidence) {
    const SAYS: &str = "the app's document is the measured one";
    let claims = verified.claims();
    let measured = claims.compose_hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
    // The library has compared the document that was shown with the measured hash already.
    let origin = if let Some(document) = &evidence.app_compose {
        verdict.check("app-document", Mark::Passed, SAYS, "SHA-256 of the app-compose.json that was shown equals the measured one");
        containers::check(verdict, document);
        "recomputed from the app-compose.json that was shown"
    } else {
        verdict.caveats.push("The app's document was not shown, so only its hash is known.".to_owned());
        verdict.check("app-document", Mark::Unknown, SAYS, "the document was not shown");
        "measured; the document was not shown"
    };
    verdict.trust_anchors.push(Anchor::new("application", format!("compose hash {measured}"), origin));
    check_expected(verdict, question, claims.app_id, claims.compose_hash);
}

/// App and document against what the user expects.
pub(crate) fn check_expected(verdict: &mut Verdict, question: &Question, app_id: Option<AppId>, compose_hash: Option<ComposeHash>) {
    if let Some(expected) = question.expectations.app_id {
        let is_it = app_id == Some(expected);
        let found = app_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let detail = if is_it { expected.to_string() } else { format!("expected app {expected}, measured {found}") };
        verdict.check("app-expected", if is_it { Mark::Passed } else { Mark::Failed }, "it is the app that you expect", detail);
    }
    if !question.expectations.compose_hashes.is_empty() {
        let is_one = compose_hash.is_some_and(|hash| question.expectations.compose_hashes.contains(&hash));
        let measured = compose_hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
        let detail = if is_one { measured } else { format!("compose hash {measured} is not among those that you expect") };
        let outcome = if is_one { Mark::Passed } else { Mark::Failed };
        verdict.check("compose-expected", outcome, "its document is one that you expect", detail);
    }
}

/// Where the keys come from. `bound_by`: what covers `provider`, for people.
pub(crate) fn check_kms(verdict: &mut Verdict, question: &Question, provider: Option<&KeyProvider>, bound_by: &str) {
    const SAYS: &str = "its keys come from the KMS that you expect";
    let expected = question.expectations.kms.as_ref();
    let Some(provider) = provider else {
        verdict.caveats.push("The app's keys come from a source that was not measured.".to_owned());
        if expected.is_some() {
            verdict.check("kms", Mark::Failed, SAYS, "no key provider was measured");
        }
        return;
    };
    let (anchor, origin) = match (provider.name.as_str(), expected) {
        ("kms", expected) => {
            let key = format!("KMS, root key SHA-256 {}", hex::encode(Sha256::digest(&provider.id)));
            match expected {
                Some((spki, origin)) if *spki == provider.id => {
                    verdict.check("kms", Mark::Passed, SAYS, format!("the {bound_by} names its root key"));
                    (key, format!("{bound_by}; equals {origin}"))
                }
                Some((_, origin)) => {
                    verdict.check("kms", Mark::Failed, SAYS, format!("the measured key provider is not the KMS of {origin}"));
                    (key, format!("{bound_by}; differs from {origin}"))
                }
                None => {
                    verdict.check("kms", Mark::Unknown, SAYS, "no KMS is expected");
                    verdict.caveats.push(
                        "The app's keys come from a KMS that this policy does not name; whoever runs it could hand them to others."
                            .to_owned(),
                    );
                    (key, format!("{bound_by}; compared with nothing. By which rule it releases keys, its operator must show"))
                }
            }
        }
        (other, Some((_, origin))) => {
            verdict.check("kms", Mark::Failed, SAYS, format!("keys come from `{other}`, expected is the KMS of {origin}"));
            (other.to_owned(), bound_by.to_owned())
        }
        ("none", None) => ("none: the VM makes its keys itself".to_owned(), bound_by.to_owned()),
        (other, None) => (other.to_owned(), bound_by.to_owned()),
    };
    verdict.trust_anchors.push(Anchor::new("key provider", anchor, origin));
}

fn identity(evidence: &Evidence, verified: &VerifiedEvidence) -> Identity {
    let claims = verified.claims();
    let document = evidence.app_compose.clone().and_then(|raw| AppCompose::parse(raw).ok());
    Identity {
        app_id: claims.app_id,
        app_name: document.map(|app| app.document().name.clone()),
        compose_hash: claims.compose_hash,
        instance_id: claims.instance_id.to_string(),
        os_image_hash: verified.os_image_hash().copied(),
        device_id: Some(hex::encode(verified.device_id())),
    }
}
