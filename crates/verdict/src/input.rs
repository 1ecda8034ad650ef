//! What kind of evidence bytes are, told by their content alone.
//!
//! | first bytes | kind |
//! |---|---|
//! | `{` | JSON: evidence, a saved bundle |
//! | `[` | JSON array of byte values, then as raw bytes |
//! | `-----BEGIN` | PEM certificate, leaf first |
//! | hex digits or base64 only | as the raw bytes they stand for |
//! | `30 8x` | DER certificate |
//! | `84 4x`, `84 5x`, `d2 84` | COSE: Nitro document |
//! | `d9 01 8f` | CBOR tag 399: CCA token |
//! | `ff 54 43 47` | TPM attestation structure |
//! | `00`, and not 1,184 bytes | envelope, version 0 |
//! | `80`–`8f`, `de`, `df` | envelope, version 1 |
//! | small LE16, then a non-zero LE16 | TDX or SGX quote |
//! | small LE32 | SNP report |
//!
//! Recognition decides only who judges: a truncated quote is still a quote, and its verifier says what is missing.

use std::borrow::Cow;

use dstack_attestation::{MAX_EVIDENCE_BYTES, parse_certificates};

use crate::{
    Subject,
    certificate::{CertificateError, EvidenceCertificate},
    document,
    encoding::{parse_base64, parse_hex},
    subject::{Kind, NitroEvidence, SnpEvidence},
};

/// Largest input that is read. Evidence has some 10 KiB; with a log, a document and collateral rarely 1 MiB.
pub const MAX_INPUT_BYTES: usize = MAX_EVIDENCE_BYTES;
/// Length of an SNP report.
const SNP_REPORT_BYTES: usize = 1184;

/// Why bytes are no evidence. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// Too long.
    #[error("the input has more than {} MiB", MAX_INPUT_BYTES >> 20)]
    TooLong,
    /// Nothing in it.
    #[error("the input is empty")]
    Empty,
    /// No kind of evidence looks like this.
    #[error("the input is no kind of evidence that is known here (it starts with {start})")]
    Unrecognised {
        /// Its first bytes, hex.
        start: String,
    },
    /// JSON that is no evidence.
    #[error("the JSON document is no evidence: {reason}")]
    Document {
        /// What is wrong with it.
        reason: String,
    },
    /// A log that came beside the evidence and is of no use.
    #[error("{name} {reason}")]
    Log {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An envelope that cannot be opened.
    #[error("the attestation envelope cannot be read: {reason}")]
    Envelope {
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate without usable evidence.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Subject {
    /// Tells what `bytes` are and opens containers around evidence. Everything in the result is unverified.
    ///
    /// Errors: no evidence in it.
    pub fn recognise(bytes: &[u8]) -> Result<Self, InputError> {
        if bytes.len() > MAX_INPUT_BYTES {
            return Err(InputError::TooLong);
        }
        match text_form(bytes) {
            Some(Text::Json(text)) => document::parse(text),
            Some(Text::Pem) => from_certificates(parse_certificates(bytes).ok()),
            Some(Text::Encoded(raw)) => from_binary(&raw),
            None => from_binary(bytes),
        }
    }
}

enum Text<'a> {
    Json(&'a str),
    Pem,
    Encoded(Vec<u8>),
}

fn text_form(bytes: &[u8]) -> Option<Text<'_>> {
    // Binary evidence has a zero or a high byte among its first few; long binaries are not decoded as text in vain.
    let head = bytes.get(..bytes.len().min(64)).unwrap_or_default();
    if head.iter().any(|byte| *byte == 0 || *byte >= 0x80) && !head.starts_with(b"\xef\xbb\xbf") {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_start_matches('\u{feff}').trim();
    match text.as_bytes().first()? {
        b'{' => return Some(Text::Json(text)),
        b'[' => return serde_json::from_str(text).ok().map(Text::Encoded),
        _ => {}
    }
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Some(Text::Pem);
    }
    parse_hex(text).or_else(|| parse_base64(text)).filter(|raw| raw.len() > 4).map(Text::Encoded)
}

/// The raw bytes that `bytes` are or stand for in hex or base64; `None` for JSON and PEM.
#[must_use]
pub fn binary_form(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    match text_form(bytes) {
        Some(Text::Json(_) | Text::Pem) => None,
        Some(Text::Encoded(raw)) => Some(Cow::Owned(raw)),
        None => Some(Cow::Borrowed(bytes)),
    }
}

/// Evidence as the hardware or an envelope has it.
pub(crate) fn from_binary(bytes: &[u8]) -> Result<Subject, InputError> {
    let unrecognised = || InputError::Unrecognised { start: hex::encode(bytes.get(..bytes.len().min(8)).unwrap_or_default()) };
    match bytes {
        [] => Err(InputError::Empty),
        [0x30, 0x80..=0x84, ..] => from_certificates(Some(vec![bytes.to_vec()])),
        [0x84, 0x40..=0x5b, ..] | [0xd2, 0x84, ..] => Ok(Kind::Nitro(NitroEvidence::bare(bytes)).into()),
        [0xd9, 0x01, 0x8f, ..] => Ok(Kind::Cca(bytes.to_vec()).into()),
        [0x80..=0x8f | 0xde | 0xdf, ..] => Subject::from_envelope(bytes),
        [_, 0, 0, 0, ..] if bytes.len().abs_diff(SNP_REPORT_BYTES) <= 1 => Ok(Kind::SevSnp(snp(bytes)).into()),
        [0, ..] => Subject::from_envelope(bytes),
        [_, 0, key_type, 0, tee @ ..] if *key_type != 0 => Ok(intel(bytes, tee)),
        [version, 0, 0, 0, ..] if *version < 16 => Ok(Kind::SevSnp(snp(bytes)).into()),
        _ => Err(unrecognised()),
    }
}

/// Version 3 is SGX only; from version 4 the TEE type stands behind the key type. Anything that is not SGX is judged as TDX.
fn intel(bytes: &[u8], tee: &[u8]) -> Subject {
    let is_sgx = bytes.first() == Some(&3) || tee.get(..4) == Some(&[0; 4]);
    if is_sgx { Kind::Sgx(bytes.to_vec()).into() } else { Subject::from_td_quote(bytes.to_vec()) }
}

fn snp(report: &[u8]) -> SnpEvidence {
    SnpEvidence { report: report.to_vec(), ..Default::default() }
}

fn from_certificates(chain: Option<Vec<Vec<u8>>>) -> Result<Subject, InputError> {
    let chain = chain.ok_or(CertificateError::Malformed)?;
    let leaf = chain.first().ok_or(CertificateError::Malformed)?;
    let certificate = EvidenceCertificate::parse(leaf)?;
    let mut subject = certificate.subject()?;
    subject.certificate = Some(certificate);
    Ok(subject)
}

/// Text of a JSON field that holds bytes: hex, or base64.
pub(crate) fn field_bytes(name: &str, text: &str) -> Result<Vec<u8>, InputError> {
    let decoded = parse_hex(text).or_else(|| parse_base64(text));
    decoded.ok_or_else(|| InputError::Document { reason: format!("`{name}` is neither hex nor base64") })
}

/// What bytes would be judged as, for messages: the platform's name, or `unknown`.
#[must_use]
pub fn guess_platform(bytes: &[u8]) -> Cow<'static, str> {
    Subject::recognise(bytes).map_or(Cow::Borrowed("unknown"), |subject| Cow::Borrowed(subject.platform_name()))
}
