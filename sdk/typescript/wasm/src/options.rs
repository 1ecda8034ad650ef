//! What a caller in JavaScript may say, and the judgement.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dstack_attestation::{QuoteCollateral, Vendor, parse_certificates};
use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use dstack_verdict::{Challenge, ChallengeField, EvidenceCertificate, Question, Subject, Verdict, judge, parse_hex, refuse_before_papers};
use serde::Deserialize;

/// The question. Unknown fields are refused: a misspelt expectation must not pass for none.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Options {
    /// Unix seconds at which everything must be valid.
    pub now: u64,
    /// Intel's collateral.
    pub collateral: Option<QuoteCollateral>,
    /// Certificates, each PEM (any number in one text) or base64 of DER.
    pub certificates: Vec<String>,
    /// Root in place of the vendor's, PEM or base64 of DER.
    pub root: Option<String>,
    /// Event log, JSON array as text.
    pub event_log: Option<String>,
    /// CCEL, base64.
    pub ccel: Option<String>,
    /// Expected report data, hex.
    pub report_data: Option<String>,
    /// Challenge, hex.
    pub nonce: Option<String>,
    /// The challenge was made at random for this question.
    pub nonce_is_fresh: bool,
    /// The app that is expected, hex.
    pub app_id: Option<AppId>,
    /// Documents that are expected, hex.
    pub compose_hashes: Vec<ComposeHash>,
    /// OS images that are known to be good, hex.
    pub os_images: Vec<OsImageHash>,
    /// Root certificate of the KMS that is expected, PEM or base64 of DER.
    pub kms_root: Option<String>,
    /// What was verified, for the verdict.
    pub source: String,
}

/// Answers a request of the ABI with JSON.
pub(crate) fn answer(request: &[u8]) -> String {
    let verdict = split(request).and_then(|(options, evidence)| {
        let options = serde_json::from_slice(options).map_err(|error| format!("options: {error}"))?;
        verify(evidence, options)
    });
    let error = |text: String| serde_json::json!({ "error": text }).to_string();
    match verdict {
        Ok(verdict) => serde_json::to_string(&verdict).unwrap_or_else(|problem| error(problem.to_string())),
        Err(problem) => error(problem),
    }
}

fn split(request: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let (length, rest) = request.split_first_chunk::<4>().ok_or("the request is too short")?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| "the options are too long")?;
    rest.split_at_checked(length).ok_or_else(|| "the request is shorter than it says".to_owned())
}

/// The verdict about `evidence`, bytes of any kind.
///
/// Errors: `options` make no sense, in words.
pub fn verify(evidence: &[u8], options: Options) -> Result<Verdict, String> {
    let source = options.source.clone();
    let mut question = Question { challenge: challenge(&options)?, ..Question::open(options.now) };
    question.expectations.app_id = options.app_id;
    question.expectations.compose_hashes.clone_from(&options.compose_hashes);
    question.expectations.os_images = options.os_images.iter().map(|hash| (*hash, "named by the caller".to_owned())).collect();
    question.expectations.kms = options.kms_root.as_deref().map(kms_key).transpose()?;
    let root = options.root.as_deref().map(|root| one(&certificates(root)?)).transpose()?;
    let blank = Verdict::blank(&source, &question.policy_name, options.now);
    let unreadable = |reason: String| blank.clone().unreadable(reason, "give evidence, papers and logs whole and unchanged");
    let mut subject = match Subject::recognise(evidence) {
        Ok(subject) => subject,
        Err(error) => return Ok(unreadable(error.to_string())),
    };
    if let Err(reason) = add_logs(&mut subject, &options) {
        return Ok(unreadable(reason));
    }
    if let Some(root) = root {
        let vendor = subject.platform().vendor().unwrap_or(Vendor::Google);
        question.anchors = question.anchors.replace(vendor, [root]).map_err(|error| error.to_string())?;
        "given by the caller".clone_into(&mut question.root_origin);
    }
    question.endorsements.collateral = options.collateral.or_else(|| subject.saved.collateral.clone());
    question.endorsements.certificates.clone_from(&subject.saved.certificates);
    for text in &options.certificates {
        question.endorsements.certificates.extend(certificates(text)?);
    }
    Ok(refuse_before_papers(&subject, &question, &source).unwrap_or_else(|| judge(&subject, &question, &source)))
}

fn add_logs(subject: &mut Subject, options: &Options) -> Result<(), String> {
    if let Some(log) = &options.event_log {
        let events = serde_json::from_str(log).map_err(|error| format!("the event log is malformed: {error}"))?;
        subject.set_event_log(events).map_err(|error| error.to_string())?;
    }
    if let Some(ccel) = &options.ccel {
        let ccel = STANDARD.decode(ccel).map_err(|_| "the CCEL is not base64".to_owned())?;
        subject.set_ccel(&ccel).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn challenge(options: &Options) -> Result<Option<Challenge>, String> {
    let (text, field) = match (&options.nonce, &options.report_data) {
        (Some(_), Some(_)) => return Err("give a nonce or report data, not both".to_owned()),
        (Some(nonce), None) => (nonce, ChallengeField::Nonce),
        (None, Some(data)) => (data, ChallengeField::ReportData),
        (None, None) => return Ok(None),
    };
    let bytes = parse_hex(text).filter(|bytes| (1..=64).contains(&bytes.len())).ok_or("a challenge is 1 to 64 bytes in hex")?;
    Ok(Some(Challenge { bytes, field, is_fresh: options.nonce_is_fresh }))
}

fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let bytes = if text.contains("-----BEGIN") { text.as_bytes().to_vec() } else { STANDARD.decode(text).unwrap_or_default() };
    parse_certificates(&bytes).map_err(|_| "a certificate is neither PEM nor base64 of DER".to_owned())
}

fn one(certificates: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    match certificates {
        [certificate] => Ok(certificate.clone()),
        _ => Err("give exactly one certificate".to_owned()),
    }
}

fn kms_key(text: &str) -> Result<(Vec<u8>, String), String> {
    let certificate = EvidenceCertificate::parse(&one(&certificates(text)?)?).map_err(|error| error.to_string())?;
    Ok((certificate.spki_der().to_vec(), "the certificate that the caller gave".to_owned()))
}
