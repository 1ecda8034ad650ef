//! From evidence to verdict. Pure.

use dstack_api::UserFacing as _;
use dstack_attestation::{
    AnchorKind, Check, CheckOutcome, CheckReport, Endorsements, Evidence, TcbStatus, TdFields, UnverifiedQuote, VerifiedEvidence, Verifier,
    VerifyError,
};
use dstack_manifest::AppCompose;
use sha2::{Digest as _, Sha256};

use super::{
    nonce::Nonce,
    settings::Settings,
    verdict::{Anchor, CheckLine, Identity, Mark, RegisterValues, Verdict, Word},
};

/// The library's checks in order, with what each says when it holds.
const CHECKS: [(Check, &str); 10] = [
    (Check::QuoteFormat, "the evidence holds a TDX quote"),
    (Check::QuoteSignature, "the quote is signed by a TEE of a trusted vendor"),
    (Check::TdAttributes, "the VM cannot be debugged or migrated"),
    (Check::TcbPolicy, "the platform's firmware is acceptable"),
    (Check::ReportData, "the quote answers our challenge"),
    (Check::RuntimeLog, "the log of the guest matches the quote"),
    (Check::BootLog, "the log of the boot matches the quote"),
    (Check::Identity, "the app's identity is measured"),
    (Check::MrConfigId, "the host launched the VM for this app"),
    (Check::OsImage, "firmware, kernel, initrd and command line are those of an OS image"),
];

/// What is to be judged, by what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    /// Unverified.
    pub evidence: &'a Evidence,
    /// Anchors, policy, expectations.
    pub settings: &'a Settings,
    /// The challenge, if there is one.
    pub nonce: Option<&'a Nonce>,
    /// The evidence was made for us now.
    pub is_live: bool,
    /// Unix seconds.
    pub now: u64,
}

/// Refuses a quote whose certificate chain ends in a root that is not trusted, before anything is fetched for it.
#[must_use]
pub(super) fn refuse_foreign_root(case: &Case<'_>, source: &str) -> Option<Verdict> {
    let quote = UnverifiedQuote::parse(&case.evidence.quote).ok()?;
    let chain = quote.pck_chain().ok()?;
    let root = chain.last()?;
    if chain.len() < 2 || case.settings.anchors.find(root).is_some() {
        return None;
    }
    let mut verdict = blank(case, source);
    let name = subject(root);
    verdict.reason = format!("the quote's certificate chain ends in `{name}`, which is not a root that this policy trusts");
    verdict.fix =
        "if this is your own software TEE, put its root under [danger] simulated_root of a verify.toml and pass that with --config"
            .to_owned();
    verdict.trust_anchors.push(Anchor {
        role: "CPU vendor",
        anchor: format!("UNKNOWN root `{name}`, SHA-256 {}", hex::encode(Sha256::digest(root))),
        origin: "named by the evidence itself; not trusted".to_owned(),
    });
    fill_checks(&mut verdict, &CheckReport::default(), Some((Check::QuoteSignature, "the root is not trusted".to_owned())));
    if let Some(first) = verdict.checks.first_mut() {
        (first.result, first.found) = (Mark::Passed, format!("TDX quote version {}", quote.version()));
    }
    verdict.registers = Some(registers(quote.fields()));
    Some(verdict)
}

/// Evidence whose quote cannot even be read.
#[must_use]
pub(super) fn malformed(case: &Case<'_>, source: &str, reason: &str) -> Verdict {
    let mut verdict = blank(case, source);
    verdict.reason = format!("the evidence does not hold a TDX quote: {reason}");
    verdict.fix = "ask the app's operator; evidence of other platforms is not implemented".to_owned();
    fill_checks(&mut verdict, &CheckReport::default(), Some((Check::QuoteFormat, reason.to_owned())));
    verdict
}

/// The verdict.
#[must_use]
pub(super) fn judge(case: &Case<'_>, endorsements: &Endorsements, source: &str) -> Verdict {
    let verifier = Verifier::new(case.settings.anchors.clone(), case.settings.policy.clone());
    let expected = case.nonce.map(Nonce::report_data);
    match verifier.verify(case.evidence, endorsements, case.now, expected.as_ref()) {
        Ok(verified) => appraise(case, &verified, source),
        Err(error) => refuse(case, &error, source),
    }
}

fn blank(case: &Case<'_>, source: &str) -> Verdict {
    Verdict {
        word: Word::NotVerified,
        source: source.to_owned(),
        policy: case.settings.origin.clone(),
        reason: String::new(),
        fix: String::new(),
        trust_anchors: Vec::new(),
        checks: Vec::new(),
        caveats: Vec::new(),
        identity: Identity::default(),
        registers: None,
        verified_at: case.now,
        valid_until: None,
    }
}

fn refuse(case: &Case<'_>, error: &VerifyError, source: &str) -> Verdict {
    let mut verdict = blank(case, source);
    verdict.reason = error.reason.to_string();
    verdict.fix = error.fix();
    verdict.trust_anchors.extend(error.anchor.as_ref().map(|anchor| vendor(anchor, case.settings)));
    fill_checks(&mut verdict, &error.report, Some((error.check, error.reason.to_string())));
    verdict.registers = UnverifiedQuote::parse(&case.evidence.quote).ok().map(|quote| registers(quote.fields()));
    verdict
}

fn appraise(case: &Case<'_>, verified: &VerifiedEvidence, source: &str) -> Verdict {
    let mut verdict = blank(case, source);
    fill_checks(&mut verdict, verified.report(), None);
    verdict.identity = identity(case, verified);
    verdict.registers = Some(registers(verified.fields()));
    verdict.valid_until = Some(verified.collateral_expires_at());
    verdict.trust_anchors.push(vendor(verified.anchor(), case.settings));
    library_caveats(&mut verdict, case, verified);
    check_image(&mut verdict, case, verified);
    check_document(&mut verdict, case, verified);
    check_kms(&mut verdict, case, verified);
    let failed = verdict.checks.iter().find(|line| line.result == Mark::Failed);
    if let Some(line) = failed {
        verdict.reason = line.found.clone();
        "do not trust this app; ask its operator, or correct the expectations in the policy".clone_into(&mut verdict.fix);
    }
    verdict.word = match (failed_any(&verdict), verified.is_simulated(), verdict.caveats.is_empty()) {
        (true, ..) => Word::NotVerified,
        (_, true, _) => Word::Simulated,
        (_, _, true) => Word::Verified,
        (_, _, false) => Word::VerifiedWithCaveats,
    };
    verdict
}

fn failed_any(verdict: &Verdict) -> bool {
    verdict.checks.iter().any(|line| line.result == Mark::Failed)
}

/// One line per check of the library: made, failed, or not reached.
fn fill_checks(verdict: &mut Verdict, report: &CheckReport, failed: Option<(Check, String)>) {
    for (check, says) in CHECKS {
        let (result, found) = match (report.outcome(check), &failed) {
            (_, Some((at, why))) if *at == check => (Mark::Failed, why.clone()),
            (Some(CheckOutcome::Passed(found)), _) => (Mark::Passed, found.clone()),
            (Some(CheckOutcome::NotChecked(why)), _) => (Mark::Caveat, why.clone()),
            (None, _) => (Mark::NotReached, String::new()),
        };
        verdict.checks.push(CheckLine { check: check.name(), result, says, found });
    }
}

fn library_caveats(verdict: &mut Verdict, case: &Case<'_>, verified: &VerifiedEvidence) {
    for line in &mut verdict.checks {
        match line.check {
            "quote-signature" if verified.is_simulated() => {
                line.result = Mark::Caveat;
                verdict.caveats.push("The TEE is simulated: nothing in this VM is protected from the machine it runs on.".to_owned());
            }
            "report-data" if case.nonce.is_none() => {
                line.result = Mark::Caveat;
                "no challenge was given".clone_into(&mut line.found);
                verdict.caveats.push(
                    "Nothing shows when this evidence was made: give the challenge it answers with --nonce, or verify the running app."
                        .to_owned(),
                );
            }
            "report-data" if !case.is_live => "the challenge you gave".clone_into(&mut line.found),
            "report-data" => "a fresh random challenge".clone_into(&mut line.found),
            "tcb-policy" if verified.tcb_status() != TcbStatus::UpToDate => {
                line.result = Mark::Caveat;
                verdict.caveats.push(format!("The platform's firmware is not up to date ({}).", line.found));
            }
            "tcb-policy" if !verified.advisory_ids().is_empty() => {
                line.result = Mark::Caveat;
                verdict.caveats.push(format!("Security advisories apply to the platform: {}.", verified.advisory_ids().join(", ")));
            }
            // The image check compares the same registers with computed ones, which is more than any log can show.
            "boot-log" if line.result == Mark::Caveat && verified.os_image_hash().is_some() => {
                line.result = Mark::Passed;
                "not in the log; the registers are computed from the OS image below".clone_into(&mut line.found);
            }
            "os-image" if line.result == Mark::Passed && !verified.acpi_tables_computed() => {
                line.result = Mark::Caveat;
                verdict.caveats.push("The ACPI tables that the host gave the VM are measured, and nobody has looked at them.".to_owned());
            }
            _ if line.result == Mark::Caveat => verdict.caveats.push(format!("Not checked that {}: {}.", line.says, line.found)),
            _ => {}
        }
    }
}

fn vendor(anchor: &AnchorKind, settings: &Settings) -> Anchor {
    match anchor {
        AnchorKind::BuiltIn { name, .. } => {
            Anchor { role: "CPU vendor", anchor: (*name).to_owned(), origin: "built into this program".to_owned() }
        }
        AnchorKind::Simulated { fingerprint } => Anchor {
            role: "CPU vendor",
            anchor: format!("SIMULATED root, SHA-256 {}", hex::encode(fingerprint)),
            origin: format!("[danger] simulated_root of {}", settings.origin),
        },
        // A later version may know more vendors.
        #[allow(unreachable_patterns, reason = "non-exhaustive in spirit")]
        other => Anchor { role: "CPU vendor", anchor: other.to_string(), origin: settings.origin.clone() },
    }
}

fn check_image(verdict: &mut Verdict, case: &Case<'_>, verified: &VerifiedEvidence) {
    let Some(hash) = verified.os_image_hash() else {
        verdict.trust_anchors.push(Anchor {
            role: "OS image",
            anchor: "UNKNOWN".to_owned(),
            origin: "the evidence proves none".to_owned(),
        });
        return;
    };
    let (result, found, origin) = match case.settings.os_images.get(hash) {
        Some(name) => (Mark::Passed, name.clone(), name.clone()),
        None if case.settings.os_images.is_empty() => {
            verdict
                .caveats
                .push(format!("The VM runs OS image {hash}; whether that image is a good one is not known here (no reference values)."));
            (Mark::Caveat, "there are no reference values".to_owned(), "no reference values; compare it with the publisher's".to_owned())
        }
        None => (Mark::Failed, format!("OS image {hash} is not among the reference values"), "not among the reference values".to_owned()),
    };
    verdict.checks.push(CheckLine { check: "os-image-known", result, says: "the OS image is one that you know", found });
    verdict.trust_anchors.push(Anchor { role: "OS image", anchor: hash.to_string(), origin });
}

fn check_document(verdict: &mut Verdict, case: &Case<'_>, verified: &VerifiedEvidence) {
    let claims = verified.claims();
    let measured = claims.compose_hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
    // The library has compared the document that was shown with the measured hash already.
    let (result, found) = if case.evidence.app_compose.is_some() {
        (Mark::Passed, "SHA-256 of the app-compose.json that was shown equals the measured one".to_owned())
    } else {
        verdict.caveats.push("The app's document was not shown, so only its hash is known.".to_owned());
        (Mark::Caveat, "the document was not shown".to_owned())
    };
    let origin =
        if result == Mark::Passed { "recomputed from the app-compose.json that was shown" } else { "measured; the document was not shown" };
    verdict.checks.push(CheckLine { check: "app-document", result, says: "the app's document is the measured one", found });
    verdict.trust_anchors.push(Anchor { role: "application", anchor: format!("compose hash {measured}"), origin: origin.to_owned() });
    if let Some(expected) = case.settings.app_id {
        let is_it = claims.app_id == Some(expected);
        let found = if is_it {
            expected.to_string()
        } else {
            format!("expected app {expected}, measured {}", claims.app_id.map_or_else(|| "none".to_owned(), |id| id.to_string()))
        };
        verdict.checks.push(CheckLine {
            check: "app-expected",
            result: if is_it { Mark::Passed } else { Mark::Failed },
            says: "it is the app that you expect",
            found,
        });
    }
    if !case.settings.compose_hashes.is_empty() {
        let is_one = claims.compose_hash.is_some_and(|hash| case.settings.compose_hashes.contains(&hash));
        let found = if is_one { measured } else { format!("compose hash {measured} is not among those that you expect") };
        verdict.checks.push(CheckLine {
            check: "compose-expected",
            result: if is_one { Mark::Passed } else { Mark::Failed },
            says: "its document is one that you expect",
            found,
        });
    }
}

fn check_kms(verdict: &mut Verdict, case: &Case<'_>, verified: &VerifiedEvidence) {
    let Some(provider) = verified.claims().key_provider.as_ref() else {
        verdict.caveats.push("The app's keys come from a source that was not measured.".to_owned());
        return;
    };
    let says = "its keys come from the KMS that you expect";
    let mut line = |result, found: &str| verdict.checks.push(CheckLine { check: "kms", result, says, found: found.to_owned() });
    let (anchor, origin) = match (provider.name.as_str(), &case.settings.kms) {
        ("kms", expected) => {
            let key = format!("root key SHA-256 {}", hex::encode(Sha256::digest(&provider.id)));
            match expected {
                Some((spki, origin)) if *spki == provider.id => {
                    line(Mark::Passed, "the measured key-provider event names its root key");
                    (key, format!("key-provider event; equals {origin}"))
                }
                Some((_, origin)) => {
                    line(Mark::Failed, &format!("the measured key provider is not the KMS of {origin}"));
                    (key, format!("key-provider event; differs from {origin}"))
                }
                None => {
                    line(Mark::Caveat, "no KMS is expected");
                    verdict.caveats.push(
                        "The app's keys come from a KMS that this policy does not name; whoever runs it could hand them to others."
                            .to_owned(),
                    );
                    (key, "key-provider event; compared with nothing".to_owned())
                }
            }
        }
        (other, Some((_, origin))) => {
            line(Mark::Failed, &format!("keys come from `{other}`, expected is the KMS of {origin}"));
            (other.to_owned(), "key-provider event".to_owned())
        }
        (other, None) => (other.to_owned(), "key-provider event".to_owned()),
    };
    verdict.trust_anchors.push(Anchor { role: "key provider", anchor, origin });
}

fn identity(case: &Case<'_>, verified: &VerifiedEvidence) -> Identity {
    let claims = verified.claims();
    let document = case.evidence.app_compose.clone().and_then(|raw| AppCompose::parse(raw).ok());
    Identity {
        app_id: claims.app_id,
        app_name: document.map(|app| app.document().name.clone()),
        compose_hash: claims.compose_hash,
        instance_id: claims.instance_id.to_string(),
        os_image_hash: verified.os_image_hash().copied(),
        device_id: Some(hex::encode(verified.device_id())),
        tcb_status: Some(verified.tcb_status().to_string()),
    }
}

fn registers(fields: &TdFields) -> RegisterValues {
    RegisterValues { mrtd: hex::encode(fields.mrtd), rtmr: fields.rtmr.0.map(hex::encode), mr_config_id: hex::encode(fields.mr_config_id) }
}

/// Common name of a certificate, or what can be said of it.
fn subject(der: &[u8]) -> String {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return "a malformed certificate".to_owned() };
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    crate::output::printable(name.unwrap_or("no name"), 80)
}
