//! Evidence as JSON: the answer of an agent, of the reference's RPCs, or a saved bundle.
//!
//! A bundle is evidence with more fields beside it, so whoever reads evidence reads a bundle: `collateral`, `certificates` (PEM),
//! `revocation_lists` (hex), `nonce`, `source`.

use dstack_attestation::{Evidence, QuoteCollateral, gpu::GpuEvidence, parse_certificates};
use dstack_event_log::{Event, deserialize_events};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    Subject,
    certificate::{CertificateError, EvidenceCertificate},
    encoding::parse_hex,
    input::{InputError, field_bytes, from_binary},
    subject::{Kind, Saved},
};

/// Fields that are looked at; unknown ones are ignored, since evidence of later releases has more.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Document {
    quote: Option<String>,
    attestation: Option<String>,
    report: Option<String>,
    document: Option<String>,
    certificate: Option<String>,
    /// Of `Info`: an RA-TLS certificate.
    app_cert: Option<String>,
    collateral: Option<QuoteCollateral>,
    certificates: Option<String>,
    revocation_lists: Vec<String>,
    nonce: Option<String>,
    source: Option<String>,
    vm_config: Option<String>,
    /// Of NVIDIA's verifier: its result, signed by nobody that could be asked.
    detached_eat: Option<IgnoredAny>,
    /// Of `Info`: JSON text with the log and the document.
    tcb_info: Option<String>,
}

/// What `tcb_info` says beside registers, which the quote says better.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TcbInfo {
    #[serde(deserialize_with = "deserialize_events")]
    event_log: Vec<Event>,
    app_compose: Option<String>,
}

pub(crate) fn parse(text: &str) -> Result<Subject, InputError> {
    let document: Document = serde_json::from_str(text).map_err(|error| InputError::Document { reason: error.to_string() })?;
    let mut subject = evidence(text, &document)?;
    if let (Some(evidence), Some(config)) = (subject.td_mut(), &document.vm_config)
        && evidence.vm_config.is_empty()
    {
        evidence.vm_config.clone_from(config);
    }
    if let (Some(evidence), Some(info)) = (subject.td_mut(), &document.tcb_info) {
        let info: TcbInfo = serde_json::from_str(info).unwrap_or_default();
        if evidence.event_log.is_empty() {
            evidence.event_log = info.event_log;
        }
        evidence.app_compose = evidence.app_compose.take().or(info.app_compose.map(String::into_bytes));
    }
    subject.saved = saved(document)?;
    Ok(subject)
}

/// The first of the forms that is there. A certificate counts only where there is no fresher evidence beside it.
fn evidence(text: &str, document: &Document) -> Result<Subject, InputError> {
    let present = |field: &Option<String>| field.as_ref().is_some_and(|value| !value.is_empty());
    if present(&document.quote) {
        let bytes = field_bytes("quote", document.quote.as_deref().unwrap_or_default())?;
        let subject = from_binary(&bytes)?;
        // Only a TD has a log and a configuration beside its quote.
        if !matches!(subject.kind, Kind::Td(_)) {
            return Ok(subject);
        }
        let evidence = Evidence::parse_json(text).map_err(|error| InputError::Document { reason: chain(&error) })?;
        return Ok(Subject::from_td_evidence(evidence));
    }
    for (name, field) in [("attestation", &document.attestation), ("report", &document.report), ("document", &document.document)] {
        if let Some(value) = field.as_deref().filter(|value| !value.is_empty()) {
            return from_binary(&field_bytes(name, value)?);
        }
    }
    if let Some(gpu) = GpuEvidence::parse_json(text).ok().and_then(|list| list.into_iter().next()) {
        return Ok(Kind::Gpu(Box::new(gpu)).into());
    }
    if document.detached_eat.is_some() {
        let reason = "it is what NVIDIA's verifier said about a GPU, not the GPU's own evidence (`evidence_list`)";
        return Err(InputError::Document { reason: reason.to_owned() });
    }
    let Some(pem) = document.certificate.as_ref().or(document.app_cert.as_ref()).filter(|pem| !pem.is_empty()) else {
        return Err(InputError::Document {
            reason: "it has neither `quote` nor `attestation`, `report`, `document` or `certificate`".to_owned(),
        });
    };
    let leaf = parse_certificates(pem.as_bytes()).ok().and_then(|chain| chain.into_iter().next()).ok_or(CertificateError::Malformed)?;
    let certificate = EvidenceCertificate::parse(&leaf)?;
    let mut subject = certificate.subject()?;
    subject.certificate = Some(certificate);
    Ok(subject)
}

fn saved(document: Document) -> Result<Saved, InputError> {
    let certificates = document.certificates.as_deref().filter(|pem| !pem.is_empty());
    let nonce = document.nonce.as_deref().filter(|nonce| !nonce.is_empty());
    let refuse = |reason: &str| InputError::Document { reason: reason.to_owned() };
    let list = |hex: &String| parse_hex(hex).ok_or_else(|| refuse("an entry of `revocation_lists` is not hex"));
    Ok(Saved {
        collateral: document.collateral,
        certificates: certificates
            .map(|pem| parse_certificates(pem.as_bytes()).map_err(|_| refuse("`certificates` is not PEM")))
            .transpose()?
            .unwrap_or_default(),
        revocation_lists: document.revocation_lists.iter().map(list).collect::<Result<_, _>>()?,
        nonce: nonce.map(|nonce| parse_hex(nonce).ok_or_else(|| refuse("`nonce` is not hex"))).transpose()?,
        source: document.source,
    })
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
