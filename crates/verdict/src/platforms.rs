//! Which verifier judges which kind, and what is particular to each platform.

use dstack_attestation::{
    Context, ImageRule, PlatformVerifier as _, Refusal, SgxVerifier, TdxVerifier, UnverifiedQuote, UnverifiedSgxQuote, VerifiedPlatform,
    cca::ArmCca,
    gpu::NvidiaGpu,
    nitro::{DocumentKind, NitroEnclave, NitroTpm, UnverifiedDocument, VerifiedDocument},
    sev_snp::{self, SevSnp, SnpEvidence, VerifiedReport},
};

use crate::{Challenge, ChallengeField, Claims, Mark, Question, Verdict, nitro, snp, subject::Kind, td};

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
        Kind::Nitro(evidence) => verify_nitro(&evidence.document, context),
        Kind::GcpTdx(evidence) => TdxVerifier.verify(&evidence.td.quote, context).map(other),
        Kind::Gpu(evidence) => NvidiaGpu.verify(evidence, context).map(other),
        Kind::Cca(token) => ArmCca.verify(token, context).map(other),
    }
}

fn verify_snp(evidence: &SnpEvidence, context: &Context<'_>) -> Result<Verified, Refusal> {
    let endorsements = evidence.endorsements(context.endorsements);
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
        (Verified::Snp(report), Kind::SevSnp(evidence)) if !evidence.mr_config.is_empty() => {
            snp::appraise(verdict, evidence, question, report);
        }
        (Verified::Nitro(document), Kind::Nitro(evidence)) if evidence.claimed_report_data.is_some() => {
            nitro::appraise(verdict, evidence, question, document);
        }
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
    expected_identity_is_unknown(verdict, question);
}

/// Whoever expects an app, a document or a KMS is not answered by evidence that names none.
pub(crate) fn expected_identity_is_unknown(verdict: &mut Verdict, question: &Question) {
    let expectations = &question.expectations;
    if expectations.app_id.is_some() || !expectations.compose_hashes.is_empty() || expectations.kms.is_some() {
        verdict.check("identity", Mark::Failed, "it is the app that you expect", "the evidence names no app");
    }
}
