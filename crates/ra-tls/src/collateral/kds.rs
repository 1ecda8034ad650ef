//! The wire of AMD's key distribution service.
//!
//! Source: VCEK certificate and KDS interface specification (57230), chapter 4; the parameters of Turin: revision 1.00 and later.

use dstack_attestation::{
    Endorsements, parse_certificates,
    sev_snp::{ChipKeyName, Product},
};
use dstack_rpc::{Answer, Client};
use http::StatusCode;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::{FetchError, Service, cache::Fetched, pcs::get};

/// Asks for the certificate, then for its issuers and the list of revoked ones at the same time.
///
/// A report of version 2 does not say which product its chip is of: each that it may be of is asked for. What the service does not have
/// beside the certificate (404) is left out: the issuers are built in, and the verification says that no list was consulted.
/// `base`: path before `/vcek`.
pub(super) async fn fetch(client: &Client, base: &str, name: ChipKeyName) -> Result<Fetched, FetchError> {
    let mut unknown = None;
    for product in name.products() {
        let path = key_path(base, product, &name);
        match get(client, Service::Kds, &path).await {
            Err(error @ FetchError::Refused { status: 404, .. }) => unknown = Some(error),
            Err(error) => return Err(error),
            Ok(answer) => return with_issuers(client, base, product, &answer, &path).await,
        }
    }
    // There is at least one product.
    Err(unknown.unwrap_or(FetchError::Malformed { service: Service::Kds, path: base.to_owned(), part: "certificate" }))
}

async fn with_issuers(client: &Client, base: &str, product: Product, key: &Answer, path: &str) -> Result<Fetched, FetchError> {
    let malformed = |path: &str, part| FetchError::Malformed { service: Service::Kds, path: path.to_owned(), part };
    let mut certificates = parse_certificates(&key.body).map_err(|_| malformed(path, "certificate"))?;
    let chain_path = format!("{base}/vcek/v1/{product}/cert_chain");
    let list_path = format!("{base}/vcek/v1/{product}/crl");
    let (chain, list) = tokio::try_join!(get_if_there(client, &chain_path), get_if_there(client, &list_path))?;
    if let Some(chain) = chain {
        certificates.extend(parse_certificates(&chain.body).map_err(|_| malformed(&chain_path, "certificate chain"))?);
    }
    let mut ends = Vec::new();
    for der in &certificates {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| malformed(path, "certificate"))?;
        ends.push(certificate.validity().not_after.timestamp());
    }
    let revocation_lists: Vec<Vec<u8>> = list.into_iter().map(|list| list.body).collect();
    for der in &revocation_lists {
        let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| malformed(&list_path, "revocation list"))?;
        ends.extend(list.next_update().map(|next| next.timestamp()));
    }
    let next_update = ends.into_iter().min().and_then(|end| u64::try_from(end).ok());
    Ok(Fetched { endorsements: Endorsements { certificates, revocation_lists, ..Endorsements::default() }, next_update })
}

async fn get_if_there(client: &Client, path: &str) -> Result<Option<Answer>, FetchError> {
    match get(client, Service::Kds, path).await {
        Ok(answer) => Ok(Some(answer)),
        Err(FetchError::Refused { status, .. }) if status == StatusCode::NOT_FOUND.as_u16() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Turin's TCB has one part more, and its chips shorter names.
fn key_path(base: &str, product: Product, name: &ChipKeyName) -> String {
    let tcb = name.tcb(product);
    let fmc = tcb.fmc.map_or_else(String::new, |fmc| format!("fmcSPL={fmc:02}&"));
    let chip = hex::encode(name.hardware_id(product));
    format!(
        "{base}/vcek/v1/{product}/{chip}?{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    )
}
