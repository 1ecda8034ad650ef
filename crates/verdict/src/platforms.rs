//! Which verifier judges which kind, and what is particular to each platform.

use dstack_attestation::{Context, Fault, Link, Platform, Refusal, UnverifiedQuote, VerifiedPlatform};

use crate::{Challenge, Claims, Question, Subject, Verdict, subject::Kind, td};

pub(crate) fn verify(kind: &Kind, _context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
    let platform = match kind {
        Kind::Td(_) => Platform::Tdx,
        Kind::Sgx(_) => Platform::Sgx,
        Kind::SevSnp(_) => Platform::SevSnp,
        Kind::Nitro(_) => Platform::NitroEnclave,
        Kind::Cca(_) => Platform::ArmCca,
    };
    Err(Refusal { platform, link: Link::Format, fault: Fault::NotImplemented, detail: "this release does not verify it".to_owned() })
}

/// What evidence that is not believed says of itself.
pub(crate) fn claims_of_unverified(claims: &mut Claims, kind: &Kind) {
    if let Kind::Td(evidence) = kind
        && let Ok(quote) = UnverifiedQuote::parse(&evidence.quote)
    {
        td::claims_of(claims, quote.fields());
    }
}

/// The bytes that answer `challenge`, and what they must be.
pub(crate) fn answer(verified: &VerifiedPlatform, challenge: &Challenge) -> (Option<Vec<u8>>, Vec<u8>) {
    (Some(verified.report_data().to_vec()), challenge.report_data().to_vec())
}

/// What policy and expectations demand beyond genuineness.
pub(crate) fn appraise(_verdict: &mut Verdict, _subject: &Subject, _question: &Question, _verified: &VerifiedPlatform) {}
