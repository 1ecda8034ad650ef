//! The wire of a collateral service, version 4.

use dstack_attestation::{Endorsements, QuoteCollateral};
use dstack_rpc::{Answer, Client};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FetchError, Platform, Service, cache::Fetched};

/// Asks for the four parts at the same time.
///
/// `base`: path before `/sgx` and `/tdx`.
pub(super) async fn fetch(client: &Client, base: &str, platform: Platform) -> Result<Fetched, FetchError> {
    let (tee, fmspc) = (platform.tee().as_str(), hex::encode_upper(platform.fmspc()));
    let paths = [
        format!("{base}/sgx/certification/v4/pckcrl?ca={}&encoding=der", platform.issuer().as_str()),
        format!("{base}/{tee}/certification/v4/tcb?fmspc={fmspc}&update=standard"),
        format!("{base}/{tee}/certification/v4/qe/identity?update=standard"),
        format!("{base}/sgx/certification/v4/rootcacrl"),
    ];
    let [crl_path, tcb_path, identity_path, root_crl_path] = &paths;
    let ask = |path| get(client, Service::Pcs, path);
    let (crl, tcb, identity, root_crl) = tokio::try_join!(ask(crl_path), ask(tcb_path), ask(identity_path), ask(root_crl_path))?;

    let tcb_chain = header(&tcb, &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"], tcb_path)?;
    let identity_chain = header(&identity, &["SGX-Enclave-Identity-Issuer-Chain"], identity_path)?;
    let (tcb_info, tcb_info_signature) = signed_document(&tcb.body, "tcbInfo", tcb_path)?;
    let (qe_identity, qe_identity_signature) = signed_document(&identity.body, "enclaveIdentity", identity_path)?;
    let list = |body, path: &str| der_or_hex(body).ok_or(malformed(path, "revocation list"));
    let collateral = QuoteCollateral {
        pck_crl_issuer_chain: header(&crl, &["SGX-PCK-CRL-Issuer-Chain"], crl_path)?,
        root_ca_crl: list(root_crl.body, root_crl_path)?,
        pck_crl: list(crl.body, crl_path)?,
        tcb_info_issuer_chain: tcb_chain,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: identity_chain,
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    };
    Ok(Fetched { next_update: next_update(&collateral), endorsements: Endorsements::from(collateral) })
}

/// The answer of `service`, if it is one.
pub(super) async fn get(client: &Client, service: Service, path: &str) -> Result<Answer, FetchError> {
    let answer = match client.get(path).await {
        Ok(answer) => answer,
        Err(error) => return Err(FetchError::Unreachable { service, path: path.to_owned(), error: error.into() }),
    };
    let status = answer.status;
    if status.is_success() { Ok(answer) } else { Err(FetchError::Refused { service, path: path.to_owned(), status: status.as_u16() }) }
}

fn malformed(path: &str, part: &'static str) -> FetchError {
    FetchError::Malformed { service: Service::Pcs, path: path.to_owned(), part }
}

/// A percent-encoded PEM chain.
fn header(answer: &Answer, names: &[&str], path: &str) -> Result<String, FetchError> {
    let malformed = || malformed(path, "issuer chain");
    let value = names.iter().find_map(|name| answer.headers.get(*name)).ok_or_else(malformed)?;
    percent_decode(value.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(malformed)
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == b'%' {
            let digits = [*rest.next()?, *rest.next()?];
            bytes.extend(hex::decode(digits).ok()?);
        } else {
            bytes.push(*byte);
        }
    }
    Some(bytes)
}

/// The signed document exactly as it stands in the answer, and its signature.
fn signed_document(body: &[u8], name: &'static str, path: &str) -> Result<(String, Vec<u8>), FetchError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, alias = "enclaveIdentity")]
        #[serde(rename = "tcbInfo")]
        document: &'a RawValue,
        signature: String,
    }
    let malformed = || malformed(path, name);
    let body: Body<'_> = serde_json::from_slice(body).map_err(|_| malformed())?;
    let signature = hex::decode(&body.signature).map_err(|_| malformed())?;
    Ok((body.document.get().to_owned(), signature))
}

/// A PCCS gives revocation lists as hex, Intel as DER.
fn der_or_hex(body: Vec<u8>) -> Option<Vec<u8>> {
    match body.first()? {
        0x30 if body.get(1).is_some_and(|length| *length >= 0x80) => Some(body),
        _ => hex::decode(body.trim_ascii()).ok(),
    }
}

/// Earliest `nextUpdate` of the signed documents and the revocation lists, Unix seconds; `None` if one has none.
fn next_update(collateral: &QuoteCollateral) -> Option<u64> {
    #[derive(Deserialize)]
    struct Dated {
        #[serde(rename = "nextUpdate", with = "time::serde::rfc3339")]
        next_update: time::OffsetDateTime,
    }
    let document = |text: &str| serde_json::from_str::<Dated>(text).ok().map(|dated| dated.next_update.unix_timestamp());
    let list = |der: &[u8]| x509_parser::parse_x509_crl(der).ok().and_then(|(_, crl)| crl.next_update().map(|time| time.timestamp()));
    let times =
        [document(&collateral.tcb_info)?, document(&collateral.qe_identity)?, list(&collateral.root_ca_crl)?, list(&collateral.pck_crl)?];
    times.into_iter().min().and_then(|time| u64::try_from(time).ok())
}
