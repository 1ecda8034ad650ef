//! From a subject and a question to a verdict. Pure.

use dstack_attestation::{AnchorKind, VerifiedEvidence, Verifier};

use crate::{Anchor, EvidenceCertificate, Mark, Question, Subject, Verdict, gcp, hardware, subject::Kind, td};

/// The verdict about `subject`.
#[must_use]
pub fn judge(subject: &Subject, question: &Question, source: &str) -> Verdict {
    let mut verdict = Verdict::blank(source, &question.policy_name, question.now);
    verdict.platform = subject.platform_name().into();
    if let Some(certificate) = &subject.certificate {
        check_dates(&mut verdict, certificate, question.now);
    }
    match &subject.kind {
        Kind::Td(evidence) if td::is_of_dstack(evidence) => td::judge(verdict, evidence, subject, question),
        Kind::Td(evidence) => td::judge_quote(verdict, &evidence.quote, subject, question),
        Kind::GcpTdx(evidence) => gcp::judge(verdict, evidence, subject, question),
        _ => hardware::judge(verdict, subject, question),
    }
}

/// [`judge`] for services: by a verifier of the caller's (its anchors and policy must be those of `question`), which may know the files of
/// OS images. Also gives what was verified, where the evidence is of a dstack VM under TDX and is not refused by the library.
#[must_use]
pub fn judge_by(verifier: &Verifier, subject: &Subject, question: &Question, source: &str) -> (Verdict, Option<VerifiedEvidence>) {
    match &subject.kind {
        Kind::Td(evidence) if td::is_of_dstack(evidence) => {
            let mut verdict = Verdict::blank(source, &question.policy_name, question.now);
            verdict.platform = subject.platform_name().into();
            if let Some(certificate) = &subject.certificate {
                check_dates(&mut verdict, certificate, question.now);
            }
            td::judge_by(verifier, verdict, evidence, subject, question)
        }
        _ => (judge(subject, question, source), None),
    }
}

/// Refuses evidence that no papers of a vendor can help: broken, or under a root that is not trusted. Nothing need be fetched for it.
#[must_use]
pub fn refuse_before_papers(subject: &Subject, question: &Question, source: &str) -> Option<Verdict> {
    let mut verdict = Verdict::blank(source, &question.policy_name, question.now);
    verdict.platform = subject.platform_name().into();
    match (subject.td_quote(), subject.sgx_quote()) {
        (Some(quote), _) => td::refuse_before_papers(verdict, quote, question),
        (None, Some(quote)) => hardware::refuse_before_papers(verdict, quote, subject, question),
        (None, None) => None,
    }
}

fn check_dates(verdict: &mut Verdict, certificate: &EvidenceCertificate, now: u64) {
    let (from, until) = certificate.validity();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let (outcome, detail) = if now < from {
        (Mark::Failed, "the certificate is not valid yet")
    } else if now > until {
        (Mark::Failed, "the certificate has expired")
    } else {
        (Mark::Passed, "within its dates")
    };
    verdict.check("certificate-dates", outcome, "the certificate that carries the evidence is valid today", detail);
}

/// The anchor of the hardware's signature.
pub(crate) fn vendor_anchor(kind: &AnchorKind, question: &Question) -> Anchor {
    anchor_of("hardware vendor", kind, question)
}

/// The anchor of a signature that vouches for `role`.
pub(crate) fn anchor_of(role: &'static str, kind: &AnchorKind, question: &Question) -> Anchor {
    match kind {
        AnchorKind::BuiltIn { name, .. } => Anchor::new(role, *name, "built into this program"),
        AnchorKind::Chosen { vendor, fingerprint } => {
            Anchor::new(role, format!("root chosen for {vendor}, SHA-256 {}", hex::encode(fingerprint)), question.root_origin.clone())
        }
        AnchorKind::Simulated { fingerprint } => {
            Anchor::new(role, format!("SIMULATED root, SHA-256 {}", hex::encode(fingerprint)), question.root_origin.clone())
        }
    }
}

/// Whether a verdict under `kind` says nothing about hardware: another root in the place of a vendor's own.
///
/// A vendor without a root of its own in this program (Arm, whose partners have theirs) can only be judged by a chosen one.
pub(crate) fn is_simulated(kind: &AnchorKind) -> bool {
    match kind {
        AnchorKind::BuiltIn { .. } => false,
        AnchorKind::Simulated { .. } => true,
        AnchorKind::Chosen { vendor, .. } => dstack_attestation::TrustAnchors::hardware().roots(*vendor).next().is_some(),
    }
}
