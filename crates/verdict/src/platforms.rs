//! Which verifier judges which kind, and what is particular to each platform.

use dstack_attestation::{
    Context, Endorsements, Fault, ImageRule, Link, Platform, PlatformVerifier as _, Refusal, SgxVerifier, UnverifiedQuote,
    UnverifiedSgxQuote, VerifiedPlatform,
    sev_snp::{self, SevSnp, VerifiedReport},
};

use crate::{
    Anchor, Challenge, Claims, Mark, Question, Verdict,
    subject::{Kind, SnpEvidence},
    td,
};

/// What a verifier gave, with what only that platform has.
pub(crate) enum Verified {
    Snp(Box<VerifiedReport>),
    Other(Box<VerifiedPlatform>),
}

impl Verified {
    pub(crate) fn platform(&self) -> &VerifiedPlatform {
        match self {
            Self::Snp(report) => report.platform(),
            Self::Other(platform) => platform,
        }
    }
}

pub(crate) fn verify(kind: &Kind, context: &Context<'_>) -> Result<Verified, Refusal> {
    let absent = |platform| Refusal {
        platform,
        link: Link::Format,
        fault: Fault::NotImplemented,
        detail: "this release does not verify it".to_owned(),
    };
    match kind {
        Kind::Td(_) => Err(absent(Platform::Tdx)),
        Kind::Sgx(quote) => Ok(Verified::Other(Box::new(SgxVerifier.verify(quote, context)?))),
        Kind::SevSnp(evidence) => verify_snp(evidence, context),
        Kind::Nitro(_) => Err(absent(Platform::NitroEnclave)),
        Kind::Cca(_) => Err(absent(Platform::ArmCca)),
    }
}

/// Certificates that came with the report count as much as those given: all are checked up to AMD's root.
fn verify_snp(evidence: &SnpEvidence, context: &Context<'_>) -> Result<Verified, Refusal> {
    let mut endorsements: Endorsements = context.endorsements.clone();
    endorsements.certificates.extend(evidence.certificates.iter().cloned());
    let context = Context { endorsements: &endorsements, ..*context };
    Ok(Verified::Snp(Box::new(SevSnp.verify_report(&evidence.report, &context)?)))
}

/// What evidence that is not believed says of itself.
pub(crate) fn claims_of_unverified(claims: &mut Claims, kind: &Kind) {
    match kind {
        Kind::Td(evidence) => {
            if let Ok(quote) = UnverifiedQuote::parse(&evidence.quote) {
                td::claims_of(claims, quote.fields());
            }
        }
        Kind::SevSnp(evidence) => {
            if let Ok(report) = sev_snp::UnverifiedReport::parse(&evidence.report) {
                claims.push_bytes("measurement", &report.fields().measurement);
                claims.push_bytes("host_data", &report.fields().host_data);
                claims.push_bytes("report_data", &report.fields().report_data);
            }
        }
        Kind::Sgx(quote) => {
            if let Ok(quote) = UnverifiedSgxQuote::parse(quote) {
                claims.push_bytes("mr_enclave", &quote.fields().mr_enclave);
                claims.push_bytes("mr_signer", &quote.fields().mr_signer);
                claims.push_bytes("report_data", &quote.fields().report_data);
            }
        }
        _ => {}
    }
}

/// The bytes that answer `challenge`, and what they must be.
pub(crate) fn answer(verified: &Verified, challenge: &Challenge) -> (Option<Vec<u8>>, Vec<u8>) {
    match verified {
        Verified::Snp(report) => (Some(report.fields().report_data.to_vec()), challenge.report_data().to_vec()),
        Verified::Other(platform) => (Some(platform.report_data().to_vec()), challenge.report_data().to_vec()),
    }
}

/// What a dstack VM must be beyond genuine.
pub(crate) fn appraise(verdict: &mut Verdict, kind: &Kind, question: &Question, verified: &Verified) {
    match (verified, kind) {
        (Verified::Snp(report), Kind::SevSnp(evidence)) if !evidence.mr_config.is_empty() => snp_guest(verdict, evidence, question, report),
        _ => expected_app_is_unknown(verdict, question),
    }
}

/// Hardware alone names no app and no image: whoever expects one is not answered.
pub(crate) fn expected_app_is_unknown(verdict: &mut Verdict, question: &Question) {
    if question.policy.image == ImageRule::Required || question.policy.allowed_images.is_some() {
        let detail = "the policy demands an OS image, and evidence of the hardware alone names none";
        verdict.check("os-image", Mark::Failed, "it runs an OS image that the policy accepts", detail);
        "give evidence with its log and configuration, or set required = false under [image]".clone_into(&mut verdict.fix);
    }
    let expectations = &question.expectations;
    if expectations.app_id.is_some() || !expectations.compose_hashes.is_empty() || expectations.kms.is_some() {
        verdict.check("identity", Mark::Failed, "it is the app that you expect", "the evidence names no app");
    }
}

fn snp_guest(verdict: &mut Verdict, evidence: &SnpEvidence, question: &Question, report: &VerifiedReport) {
    const GUEST: &str = "the VM cannot be debugged or migrated";
    match sev_snp::check_guest(report.fields()) {
        Ok(()) => verdict.check("guest-policy", Mark::Passed, GUEST, "no debugging, no migration agent, privilege level 0"),
        Err(fault) => verdict.check("guest-policy", Mark::Failed, GUEST, fault.to_string()),
    }
    if evidence.claimed_report_data.is_some_and(|claimed| claimed != report.fields().report_data) {
        let says = "the report carries the data that its sender says";
        verdict.check("claimed-report-data", Mark::Failed, says, "the report's data is not the one in the envelope");
    }
    const BOUND: &str = "the host launched the VM for this app";
    let document = match sev_snp::check_host_data(report.fields(), &evidence.mr_config) {
        Ok(document) => document,
        Err(error) => return verdict.check("host-data", Mark::Failed, BOUND, error.to_string()),
    };
    verdict.check("host-data", Mark::Passed, BOUND, "HOST_DATA is the hash of the mr_config document");
    verdict.identity.compose_hash = Some(document.compose_hash);
    verdict.identity.app_id = document.app_id;
    verdict.claims.push("compose_hash", document.compose_hash.to_string());
    verdict.trust_anchors.push(Anchor::new(
        "application",
        format!("compose hash {}", document.compose_hash),
        "bound by the host at launch (HOST_DATA)",
    ));
    if question.policy.image == ImageRule::Required {
        verdict.check(
            "os-image",
            Mark::Failed,
            "it runs an OS image that the policy accepts",
            "the launch measurement was not compared with an OS image",
        );
    }
    verdict.caveats.push("Which OS image the launch measurement stands for was not checked.".to_owned());
    td::check_expected(verdict, question, document.app_id, Some(document.compose_hash));
}
