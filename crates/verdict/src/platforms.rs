//! Which verifier judges which kind, and what is particular to each platform.

use dstack_attestation::{
    Context, Endorsements, ImageRule, PlatformVerifier as _, Refusal, SgxVerifier, TdxVerifier, UnverifiedQuote, UnverifiedSgxQuote,
    VerifiedPlatform,
    cca::ArmCca,
    gpu::NvidiaGpu,
    nitro::{DocumentKind, NitroEnclave, NitroTpm, UnverifiedDocument, VerifiedDocument},
    sev_snp::{self, SevSnp, VerifiedReport},
};
use dstack_manifest::VmConfig;

use crate::{
    Anchor, Challenge, ChallengeField, Claims, Mark, Question, Verdict,
    subject::{Kind, SnpEvidence},
    td,
};

/// What a verifier gave, with what only that platform has.
pub(crate) enum Verified {
    Snp(Box<VerifiedReport>),
    Nitro(Box<VerifiedDocument>),
    Other(Box<VerifiedPlatform>),
}

impl Verified {
    pub(crate) fn platform(&self) -> &VerifiedPlatform {
        match self {
            Self::Snp(report) => report.platform(),
            Self::Nitro(document) => document.platform(),
            Self::Other(platform) => platform,
        }
    }
}

pub(crate) fn verify(kind: &Kind, context: &Context<'_>) -> Result<Verified, Refusal> {
    let other = |verified| Verified::Other(Box::new(verified));
    match kind {
        Kind::Td(evidence) => TdxVerifier.verify(&evidence.quote, context).map(other),
        Kind::Sgx(quote) => SgxVerifier.verify(quote, context).map(other),
        Kind::SevSnp(evidence) => verify_snp(evidence, context),
        Kind::Nitro(document) => verify_nitro(document, context),
        Kind::Gpu(evidence) => NvidiaGpu.verify(evidence, context).map(other),
        Kind::Cca(token) => ArmCca.verify(token, context).map(other),
    }
}

/// Certificates that came with the report count as much as those given: all are checked up to AMD's root.
fn verify_snp(evidence: &SnpEvidence, context: &Context<'_>) -> Result<Verified, Refusal> {
    let mut endorsements: Endorsements = context.endorsements.clone();
    endorsements.certificates.extend(evidence.certificates.iter().cloned());
    let context = Context { endorsements: &endorsements, ..*context };
    Ok(Verified::Snp(Box::new(SevSnp.verify_report(&evidence.report, &context)?)))
}

/// The document says itself whether an enclave or an instance with NitroTPM asked for it.
fn verify_nitro(document: &[u8], context: &Context<'_>) -> Result<Verified, Refusal> {
    let is_tpm = UnverifiedDocument::parse(document).is_ok_and(|parsed| parsed.document().kind == DocumentKind::NitroTpm);
    let verified = if is_tpm { NitroTpm.verify_document(document, context)? } else { NitroEnclave.verify_document(document, context)? };
    Ok(Verified::Nitro(Box::new(verified)))
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
        Verified::Nitro(document) => {
            let document = document.document();
            let field = if challenge.field == ChallengeField::Nonce { &document.nonce } else { &document.user_data };
            let answer = field.clone().or_else(|| document.user_data.clone());
            // dstack puts 64 bytes of report data into the user data.
            let is_padded = answer.as_ref().is_some_and(|answer| answer.len() == 64);
            (answer, if is_padded { challenge.report_data().to_vec() } else { challenge.bytes.clone() })
        }
        Verified::Other(platform) if platform.report_data().len() != 64 => (Some(platform.report_data().to_vec()), challenge.bytes.clone()),
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
    snp_image(verdict, evidence, question, report);
    td::check_expected(verdict, question, document.app_id, Some(document.compose_hash));
}

/// The OS image that the launch measurement stands for. Memory, devices and ACPI tables are not part of it.
fn snp_image(verdict: &mut Verdict, evidence: &SnpEvidence, question: &Question, report: &VerifiedReport) {
    const SAYS: &str = "firmware, kernel, initrd and command line are those of an OS image";
    let config = serde_json::from_str::<VmConfig>(&evidence.vm_config).unwrap_or_default();
    let mismatch = match sev_snp::check_launch(report.fields(), &config) {
        Ok(proof) => {
            let allowed = question.policy.allowed_images.as_ref();
            let (outcome, detail) = match allowed.is_some_and(|allowed| !allowed.contains(&proof.os_image_hash)) {
                true => (Mark::Failed, format!("os image {} is not one that the policy allows", proof.os_image_hash)),
                false => (Mark::Passed, format!("os image {} with {} vCPUs", proof.os_image_hash, proof.shape.vcpus)),
            };
            verdict.check("os-image", outcome, SAYS, detail);
            verdict.identity.os_image_hash = Some(proof.os_image_hash);
            verdict.claims.push("os_image_hash", proof.os_image_hash.to_string());
            return td::check_image(verdict, question, Some(&proof.os_image_hash));
        }
        Err(mismatch) => mismatch,
    };
    let is_demanded = question.policy.image == ImageRule::Required || question.policy.allowed_images.is_some();
    if mismatch.lacks_material() && !is_demanded {
        verdict.check("os-image", Mark::Unknown, SAYS, mismatch.to_string());
        verdict.caveats.push(format!("Not checked that {SAYS}: {mismatch}."));
    } else {
        verdict.check("os-image", Mark::Failed, SAYS, mismatch.to_string());
    }
    td::check_image(verdict, question, None);
}
