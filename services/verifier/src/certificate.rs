//! Certificate chains: what X.509 says of them, then the evidence in the leaf.

use std::{sync::Arc, time::Duration};

use dstack_api::verifier::{CheckLine, VerifyResponse};
use dstack_attestation::parse_certificates;
use dstack_verdict::Subject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::{Refusal, Verification};

/// Longest chain that is read.
const MAX_CHAIN: usize = 8;

/// Judges a chain (PEM or DER, leaf first, its root last): each certificate is signed by the next and the last by itself, all are valid
/// now, the leaf may sign and serve, and it carries evidence that binds its key and holds.
///
/// The root is nobody's anchor here: that the chain holds together says who issued it, the evidence says what it is worth.
/// Errors: no certificates, or no evidence in the leaf.
pub async fn verify(verification: &Verification, bytes: &[u8]) -> Result<VerifyResponse, Refusal> {
    let chain = parse_certificates(bytes).ok().filter(|chain| !chain.is_empty() && chain.len() <= MAX_CHAIN);
    let chain = chain.ok_or(dstack_verdict::InputError::Certificate(dstack_verdict::CertificateError::Malformed))?;
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let mut lines = x509_lines(&chain, verification.now());
    let subject = Subject::recognise(leaf)?;
    let mut answer = verification.judge(Arc::new(subject)).await?;
    if let Some(line) = lines.iter().find(|line| line.outcome == "fail") {
        answer.is_valid = false;
        answer.reason.get_or_insert_with(|| format!("{}: {}", line.name, line.detail));
        "NOT VERIFIED".clone_into(&mut answer.verdict);
    }
    lines.append(&mut answer.checks);
    answer.checks = lines;
    Ok(answer)
}

fn x509_lines(chain: &[Vec<u8>], now: u64) -> Vec<CheckLine> {
    vec![
        line("certificate-chain", "each certificate is signed by the next, and all are valid now", check_chain(chain, now)),
        line("certificate-key-usage", "the leaf's key may sign, the others' may issue", check_key_usage(chain)),
        line("certificate-extended-key-usage", "the leaf is for servers or clients", leaf_of(chain).and_then(check_purpose)),
        line("certificate-names", "the leaf says for which names it stands", leaf_of(chain).and_then(names_of)),
    ]
}

/// What was found, or that the question does not arise, or what is wrong.
enum Found {
    Holds(String),
    Absent(&'static str),
}

fn line(name: &str, says: &str, result: Result<Found, String>) -> CheckLine {
    let (outcome, detail) = match result {
        Ok(Found::Holds(detail)) => ("pass", detail),
        Ok(Found::Absent(why)) => ("skipped", why.to_owned()),
        Err(why) => ("fail", why),
    };
    CheckLine { name: name.to_owned(), outcome: outcome.to_owned(), detail, says: says.to_owned() }
}

fn check_chain(chain: &[Vec<u8>], now: u64) -> Result<Found, String> {
    let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let (Some(leaf), Some(root)) = (ders.first(), ders.last()) else { return Err("there is no certificate".to_owned()) };
    let intermediates = ders.get(1..ders.len().saturating_sub(1)).unwrap_or_default();
    let words = |error: webpki::Error| error.to_string();
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(words)?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    EndEntityCert::try_from(leaf)
        .map_err(words)?
        .verify_for_usage(ALL_VERIFICATION_ALGS, &[anchor], intermediates, time, KeyUsage::server_auth(), None, None)
        .map_err(words)?;
    let parsed = parse(root)?;
    if !parsed.validity().is_valid_at(ASN1Time::from_timestamp(i64::try_from(now).unwrap_or(i64::MAX)).map_err(|error| error.to_string())?)
    {
        return Err("the root is not valid now".to_owned());
    }
    if parsed.subject() != parsed.issuer() {
        return Err(format!("it ends in `{}`, which another authority issued", parsed.subject()));
    }
    let root = EndEntityCert::try_from(root).map_err(words)?;
    let (signed, signature) = (parsed.tbs_certificate.as_ref(), parsed.signature_value.as_ref());
    if !ALL_VERIFICATION_ALGS.iter().any(|algorithm| root.verify_signature(*algorithm, signed, signature).is_ok()) {
        return Err(format!("`{}` is not signed by its own key", parsed.subject()));
    }
    Ok(Found::Holds(format!("{} certificates up to `{}`", chain.len(), parsed.subject())))
}

fn check_key_usage(chain: &[Vec<u8>]) -> Result<Found, String> {
    for (index, der) in chain.iter().enumerate() {
        let certificate = parse(der)?;
        let Some(usage) = certificate.key_usage().map_err(|error| error.to_string())? else { continue };
        let may = if index == 0 { usage.value.digital_signature() } else { usage.value.key_cert_sign() };
        if !may {
            return Err(format!("the key of `{}` may not do what it did", certificate.subject()));
        }
        if index > 0 && !certificate.is_ca() {
            return Err(format!("`{}` is no authority", certificate.subject()));
        }
    }
    Ok(Found::Holds("as their certificates allow".to_owned()))
}

fn check_purpose(leaf: X509Certificate<'_>) -> Result<Found, String> {
    match leaf.extended_key_usage().map_err(|error| error.to_string())? {
        None => Ok(Found::Absent("the leaf names no purpose, so any")),
        Some(usage) if usage.value.server_auth || usage.value.client_auth || usage.value.any => {
            Ok(Found::Holds(format!("server: {}, client: {}", usage.value.server_auth, usage.value.client_auth)))
        }
        Some(_) => Err("the leaf is for neither servers nor clients".to_owned()),
    }
}

fn names_of(leaf: X509Certificate<'_>) -> Result<Found, String> {
    let Some(names) = leaf.subject_alternative_name().map_err(|error| error.to_string())? else {
        return Ok(Found::Absent("the leaf has no alternative names"));
    };
    let texts = names.value.general_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => other.to_string(),
    });
    Ok(Found::Holds(texts.take(16).collect::<Vec<_>>().join(", ").chars().take(300).collect()))
}

fn leaf_of(chain: &[Vec<u8>]) -> Result<X509Certificate<'_>, String> {
    chain.first().ok_or_else(|| "there is no certificate".to_owned()).and_then(|der| parse(der))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|error| error.to_string())
}
