//! Bundles: evidence in a file with everything that a later verification needs.

use std::path::Path;

use dstack_attestation::Envelope;
use dstack_service::fs::write_atomic;
use dstack_verdict::{Kind, Question, Subject, binary_form};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::discover::Connection;
use crate::failure::{Failure, Outcome};

/// Writes evidence and papers into one JSON document that [`Subject::recognise`] reads.
///
/// `bytes`: the evidence as it came. Errors: not writable.
pub(super) fn save(path: &Path, bytes: &[u8], subject: &Subject, question: &Question, connection: Option<&Connection>) -> Outcome {
    let internal = |error: serde_json::Error| Failure::new("cli/internal", error.to_string(), "report this defect");
    let mut fields = evidence(bytes, subject);
    if let Some(collateral) = &question.endorsements.collateral {
        fields.insert("collateral".to_owned(), serde_json::to_value(collateral).map_err(internal)?);
    }
    if !question.endorsements.certificates.is_empty() {
        fields.insert("certificates".to_owned(), pem(&question.endorsements.certificates).into());
    }
    if !question.endorsements.revocation_lists.is_empty() {
        let lists: Vec<String> = question.endorsements.revocation_lists.iter().map(hex::encode).collect();
        fields.insert("revocation_lists".to_owned(), lists.into());
    }
    if let Some(challenge) = &question.challenge {
        fields.insert("nonce".to_owned(), hex::encode(&challenge.bytes).into());
    }
    if let Some(connection) = connection {
        fields.insert("connection".to_owned(), serde_json::to_value(connection).map_err(internal)?);
    }
    let text = serde_json::to_vec_pretty(&Value::Object(fields)).map_err(internal)?;
    write_atomic(path, &text, 0o644).map_err(|error| Failure::io("writing", path, &error))
}

/// The connection that a bundle remembers.
#[must_use]
pub(super) fn connection(bytes: &[u8]) -> Option<Connection> {
    #[derive(Deserialize)]
    struct Remembered {
        connection: Option<Connection>,
    }
    // Most input is a quote or a report; only JSON can be a bundle.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice::<Remembered>(bytes).ok()?.connection
}

/// JSON stays as it came, so that fields of later releases survive; anything else is named by its kind.
fn evidence(bytes: &[u8], subject: &Subject) -> Map<String, Value> {
    if let Ok(Value::Object(fields)) = serde_json::from_slice(bytes) {
        return fields;
    }
    // An envelope holds more than the signed part: it stays whole.
    let envelope = envelope(bytes).map(hex::encode);
    let fields = match (&subject.kind, &subject.certificate) {
        (_, Some(_)) => json!({ "certificate": certificate_text(bytes) }),
        (_, None) if envelope.is_some() => json!({ "attestation": envelope }),
        (Kind::Td(evidence), None) => json!({
            "quote": hex::encode(&evidence.quote),
            "event_log": evidence.event_log,
            "vm_config": evidence.vm_config,
        }),
        (Kind::Sgx(quote), None) => json!({ "quote": hex::encode(quote) }),
        (Kind::SevSnp(evidence), None) => json!({ "report": hex::encode(&evidence.report) }),
        (Kind::Nitro(evidence), None) => json!({ "document": hex::encode(&evidence.document) }),
        (Kind::Cca(document), None) => json!({ "document": hex::encode(document) }),
        (_, None) => json!({ "document": hex::encode(bytes) }),
    };
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The envelope that `bytes` are, in whatever encoding.
fn envelope(bytes: &[u8]) -> Option<Vec<u8>> {
    let raw = binary_form(bytes)?;
    Envelope::decode(&raw).is_ok().then(|| raw.into_owned())
}

fn certificate_text(bytes: &[u8]) -> String {
    if bytes.first() == Some(&0x30) { pem(&[bytes.to_vec()]) } else { String::from_utf8_lossy(bytes).into_owned() }
}

/// PEM of certificates.
pub(super) fn pem(certificates: &[Vec<u8>]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(der);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
