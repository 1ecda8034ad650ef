//! What the hardware alone says: a quote, report, document or token without anything of dstack around it.

use dstack_api::UserFacing as _;
use dstack_attestation::{
    Check, CheckOutcome, Context, Fault, Link, NotChecked, Platform, Refusal, TcbStatus, UnverifiedSgxQuote, VerifiedPlatform,
};

use crate::{
    ChallengeField, Mark, Question, Subject, Verdict,
    judge::{is_simulated, vendor_anchor},
    platforms::{self, Verified},
};

/// The links of the chain, in the order in which they are checked.
const LINKS: [Link; 7] =
    [Link::Format, Link::CertificateChain, Link::Revocation, Link::Endorsements, Link::AttestationKey, Link::Signature, Link::Tcb];

pub(crate) fn judge(mut verdict: Verdict, subject: &Subject, question: &Question) -> Verdict {
    let context = Context { anchors: &question.anchors, endorsements: &question.endorsements, now: question.now };
    match platforms::verify(&subject.kind, &context) {
        Ok(verified) => accept(&mut verdict, subject, question, &verified),
        Err(refusal) => refuse(&mut verdict, subject, &refusal),
    }
    verdict
}

/// See [`crate::refuse_before_papers`]; of an SGX quote.
pub(crate) fn refuse_before_papers(mut verdict: Verdict, quote: &[u8], subject: &Subject, question: &Question) -> Option<Verdict> {
    let refusal = match UnverifiedSgxQuote::parse(quote) {
        Err(error) => Refusal { platform: Platform::Sgx, link: Link::Format, fault: Fault::Malformed, detail: error.to_string() },
        Ok(quote) => {
            let chain = quote.pck_chain().ok()?;
            let root = chain.last().filter(|_| chain.len() > 1)?;
            if question.anchors.find(root).is_some() {
                return None;
            }
            let detail = format!("it ends in `{}`", crate::certificate::common_name(root));
            Refusal { platform: Platform::Sgx, link: Link::CertificateChain, fault: Fault::OtherRoot, detail }
        }
    };
    refuse(&mut verdict, subject, &refusal);
    Some(verdict)
}

fn refuse(verdict: &mut Verdict, subject: &Subject, refusal: &Refusal) {
    let mut failed_at = false;
    for link in LINKS {
        let (outcome, detail) = if link == refusal.link {
            failed_at = true;
            (Mark::Failed, format!("{} ({})", refusal.fault, refusal.detail))
        } else if failed_at {
            (Mark::Skipped, "not reached".to_owned())
        } else if link == Link::Format {
            (Mark::Passed, format!("{} evidence", refusal.platform))
        } else {
            (Mark::Skipped, "not shown: a later link failed".to_owned())
        };
        verdict.check(link.name(), outcome, says(link, refusal.platform), detail);
    }
    verdict.reason = format!("{}: {} ({})", refusal.link, refusal.fault, refusal.detail);
    fix(refusal.fault).clone_into(&mut verdict.fix);
    platforms::claims_of_unverified(&mut verdict.claims, &subject.kind);
    verdict.conclude(false);
}

fn accept(verdict: &mut Verdict, subject: &Subject, question: &Question, particular: &Verified) {
    let verified = particular.platform();
    let platform = verified.platform();
    verdict.platform = platform.name().into();
    show_links(verdict, "", verified, |_| true);
    for register in verified.registers() {
        verdict.claims.push_bytes(register.name.clone(), &register.value);
    }
    if !verified.report_data().is_empty() {
        verdict.claims.push_bytes("report_data", verified.report_data());
    }
    for fact in verified.facts() {
        verdict.claims.push(fact.name.clone(), fact.value.clone());
    }
    verdict.tcb_status = verified.tcb_status().map(|status| status.to_string());
    verdict.advisory_ids = verified.advisory_ids().to_vec();
    verdict.valid_until = verified.valid_until();
    verdict.trust_anchors.push(vendor_anchor(verified.anchor(), question));
    caveats(verdict, verified);
    check_challenge(verdict, subject, question, particular);
    check_policy(verdict, question, verified);
    platforms::appraise(verdict, &subject.kind, question, particular);
    verdict.conclude(is_simulated(verified.anchor()));
}

/// A line per link that holds, and one per thing that was not checked: skipped, with the reason, and a caveat.
///
/// `prefix`: of the lines' names, where a verdict has links of more than one chain. `matters`: what need not be said of the things that
/// were not checked, because something else makes up for it, is left out.
pub(crate) fn show_links(verdict: &mut Verdict, prefix: &str, verified: &VerifiedPlatform, matters: impl Fn(&NotChecked) -> bool) {
    let platform = verified.platform();
    for passed in verified.passed() {
        verdict.check(format!("{prefix}{}", passed.link), Mark::Passed, says(passed.link, platform), passed.found.clone());
    }
    for missed in verified.not_checked().iter().filter(|missed| matters(missed)) {
        let (name, says) = (format!("{prefix}{}", missed.link), says(missed.link, platform));
        // A link may hold in part.
        let name = if verdict.passed(&name) { format!("{name}-rest") } else { name };
        verdict.check(name, Mark::Skipped, says, missed.why.clone());
        verdict.caveats.push(format!("Not checked that {says}: {}.", missed.why));
    }
}

fn caveats(verdict: &mut Verdict, verified: &VerifiedPlatform) {
    if is_simulated(verified.anchor()) {
        verdict.caveats.push("The root is not the hardware vendor's: nothing is proven about hardware.".to_owned());
    }
    if let Some(status) = verified.tcb_status().filter(|status| *status != TcbStatus::UpToDate) {
        verdict.caveats.push(format!("The machine's firmware is not up to date ({status})."));
        if let Some(line) = verdict.checks.iter_mut().find(|line| line.name == Link::Tcb.name()) {
            line.outcome = Mark::Remark;
        }
    }
    if verified.debug() == Some(true) {
        verdict.caveats.push("It runs in debug mode: whoever runs the machine can look inside and change it.".to_owned());
    }
    if !verified.advisory_ids().is_empty() {
        verdict.caveats.push(format!("Security advisories apply to the machine: {}.", verified.advisory_ids().join(", ")));
    }
}

/// What the policy demands of any genuine evidence.
fn check_policy(verdict: &mut Verdict, question: &Question, verified: &VerifiedPlatform) {
    let (report, failed) = match question.policy.appraise(verified, question.now) {
        Ok(report) => (report, None),
        Err(error) => {
            verdict.fix = error.fix();
            (*error.report, Some((error.check, error.reason.to_string())))
        }
    };
    for (check, outcome) in report.checks() {
        let (mark, detail) = match outcome {
            CheckOutcome::Passed(found) => (Mark::Passed, found),
            CheckOutcome::NotChecked(why) => (Mark::Skipped, why),
        };
        let is_remark = *check == Check::TcbPolicy && verified.tcb_status().is_some_and(|status| status != TcbStatus::UpToDate);
        verdict.check(check.name(), if is_remark { Mark::Remark } else { mark }, says_check(*check), detail.clone());
    }
    if let Some((check, reason)) = failed {
        verdict.check(check.name(), Mark::Failed, says_check(check), reason);
    }
}

/// What a check of the policy shows.
pub(crate) fn says_check(check: Check) -> &'static str {
    match check {
        Check::Debug => "whoever runs the machine cannot look inside",
        Check::Platform => "it is a kind of machine, and a machine, that the policy accepts",
        Check::TcbPolicy => "the machine's firmware is acceptable",
        Check::Freshness => "the vendor's papers and the evidence are young enough",
        Check::TdAttributes => "the VM cannot be debugged or migrated",
        Check::OsImageEvent => "the guest measured that same OS image",
        _ => "a further demand of the policy is met",
    }
}

/// Report data against the certificate's key, and against what the user expects.
fn check_challenge(verdict: &mut Verdict, subject: &Subject, question: &Question, verified: &Verified) {
    const NAME: &str = "report-data";
    if let Some(certificate) = &subject.certificate {
        let is_bound = certificate.report_data() == *verified.platform().report_data();
        let (outcome, detail) = if is_bound {
            (Mark::Passed, "binds the certificate's key")
        } else {
            (Mark::Failed, "the report data is not that of the certificate's key")
        };
        verdict.check(NAME, outcome, "the evidence was made for the key of this certificate", detail);
    }
    let Some(challenge) = &question.challenge else {
        if subject.certificate.is_none() {
            verdict.check(
                NAME,
                Mark::Skipped,
                "the evidence answers our challenge",
                "no challenge was given, so nothing shows when it was made",
            );
        }
        return;
    };
    let (answer, expected) = platforms::answer(verified, challenge);
    let (outcome, detail) = match answer {
        Some(answer) if answer == expected => {
            (Mark::Passed, if challenge.is_fresh { "a fresh random challenge" } else { "equals what you gave" }.to_owned())
        }
        Some(answer) => (Mark::Failed, format!("expected {}, the evidence has {}", hex::encode(expected), hex::encode(answer))),
        None => (Mark::Failed, "the evidence answers no challenge".to_owned()),
    };
    let name = if subject.certificate.is_some() { "challenge" } else { NAME };
    let says = match challenge.field {
        ChallengeField::Nonce => "the evidence answers our challenge",
        ChallengeField::ReportData => "the evidence was made for the data that you expect",
    };
    verdict.check(name, outcome, says, detail);
}

/// What a link shows, for people who know none of the words.
pub(crate) fn says(link: Link, platform: Platform) -> &'static str {
    match (link, platform) {
        (Link::Format, Platform::Tdx) => "the evidence is a quote of an Intel TDX virtual machine",
        (Link::Format, Platform::Sgx) => "the evidence is a quote of an Intel SGX enclave",
        (Link::Format, Platform::SevSnp) => "the evidence is a report of an AMD SEV-SNP virtual machine",
        (Link::Format, Platform::NitroEnclave) => "the evidence is a document of an AWS Nitro Enclave",
        (Link::Format, Platform::NitroTpm) => "the evidence is a document of an AWS instance with NitroTPM",
        (Link::Format, Platform::NvidiaGpu) => "the evidence is a report of an NVIDIA GPU",
        (Link::Format, Platform::Tpm) => "the evidence is a quote of a TPM",
        (Link::Format, Platform::ArmCca) => "the evidence is a token of an Arm CCA realm",
        (Link::Format, _) => "the evidence is well formed",
        (Link::CertificateChain, _) => "certificates lead from the machine's key to the vendor's root",
        (Link::Revocation, _) => "none of these certificates was revoked",
        (Link::Endorsements, _) => "the vendor's papers about this machine are genuine and current",
        (Link::AttestationKey, _) => "the key that signed belongs to genuine hardware",
        (Link::Signature, _) => "the hardware signed exactly this evidence",
        (Link::Tcb, _) => "the vendor knows the machine's firmware and has not revoked it",
        (Link::ReportData, _) => "the evidence answers our challenge",
        (Link::EventLog, _) => "the log matches what was measured",
        _ => "a further link holds",
    }
}

pub(crate) fn fix(fault: Fault) -> &'static str {
    match fault {
        Fault::Malformed => "get the evidence again, whole and unchanged",
        Fault::Expired | Fault::NotYetValid => {
            "fetch the vendor's papers again, check this machine's clock, or give the time of the evidence with --at"
        }
        Fault::OtherRoot => "if this is your own software TEE, give its root with --root; otherwise do not trust the machine",
        Fault::UnknownTcb => "the machine's firmware is older than anything the vendor supports: it must be updated",
        Fault::OtherPlatform => "give the papers of the machine that signed",
        Fault::Missing => "give the missing certificates with --chain, or Intel's collateral with --collateral",
        Fault::NotImplemented => "verify this evidence with the vendor's own tool",
        _ => "do not trust the machine",
    }
}
