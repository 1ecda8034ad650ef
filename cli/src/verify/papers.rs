//! The vendor's papers for evidence: collateral and certificates, from wherever they are.

use std::sync::Arc;

use dstack_attestation::{
    Endorsements, QuoteCollateral, QuoteError, UnverifiedQuote, UnverifiedSgxQuote, parse_certificates, parse_revocation_list,
    sev_snp::{ChipKeyName, UnverifiedReport},
};
use dstack_ra_tls::collateral::{ChipKeyClient, CollateralClient, FetchError, Platform, Tee};
use dstack_rpc::system_tls;
use dstack_verdict::Subject;

use super::{discover::Connection, options::Given, settings::Settings};
use crate::{
    failure::{Failure, Outcome},
    progress::Progress,
};

/// What was given by hand, then what the evidence brought along. Nothing is fetched.
///
/// Errors: a file that is not what its flag says: the link that failed, in words.
pub(super) fn at_hand(given: &Given, settings: &Settings, subject: &Subject) -> Result<Endorsements, String> {
    let collateral = match (&given.collateral, &settings.collateral) {
        (Some(bytes), _) => Some(parse_collateral(bytes)?),
        (None, Some(collateral)) => Some(collateral.clone()),
        (None, None) => subject.saved.collateral.clone(),
    };
    let mut endorsements = Endorsements { collateral, ..subject.saved_endorsements() };
    for file in &given.chain {
        if let Some(list) = parse_revocation_list(file) {
            endorsements.revocation_lists.push(list);
            continue;
        }
        endorsements.certificates.extend(parse_certificates(file).map_err(|error| format!("a file of --chain: {error}"))?);
    }
    Ok(endorsements)
}

fn parse_collateral(bytes: &[u8]) -> Result<QuoteCollateral, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the collateral is not text".to_owned())?;
    QuoteCollateral::parse_json(text).map_err(|error| error.to_string())
}

/// Fetches what is missing.
///
/// Errors: it cannot be had, so the question cannot be decided.
pub(super) async fn fetch_missing(
    endorsements: &mut Endorsements,
    subject: &Subject,
    settings: &Settings,
    is_offline: bool,
    progress: &Progress,
) -> Outcome {
    let platform = match (subject.td_quote(), subject.sgx_quote()) {
        (Some(quote), _) => Some(tdx_platform(quote)),
        (None, Some(quote)) => Some(sgx_platform(quote)),
        (None, None) => None,
    };
    if let (Some(platform), None) = (platform, &endorsements.collateral) {
        let fetched = fetch_collateral(platform, settings, is_offline, progress).await?;
        endorsements.collateral.clone_from(&fetched.collateral);
    }
    // A report that cannot be read is refused for that.
    let report = subject.snp_report_without_key(endorsements).and_then(|report| UnverifiedReport::parse(report).ok());
    if let Some(report) = report {
        let fetched = fetch_chip_key(&report, settings, is_offline, progress).await?;
        endorsements.certificates.clone_from(&fetched.certificates);
        endorsements.revocation_lists.extend(fetched.revocation_lists.iter().cloned());
    }
    Ok(())
}

fn tdx_platform(quote: &[u8]) -> Result<Platform, QuoteError> {
    let chain = UnverifiedQuote::parse(quote)?.pck_chain()?;
    Ok(Platform::known(Tee::Tdx, chain.fmspc()?, chain.issuer()?))
}

fn sgx_platform(quote: &[u8]) -> Result<Platform, QuoteError> {
    let chain = UnverifiedSgxQuote::parse(quote)?.pck_chain()?;
    Ok(Platform::known(Tee::Sgx, chain.fmspc()?, chain.issuer()?))
}

/// Fetches the collateral of a gateway's machine, where a gateway ends TLS.
///
/// Errors: as [`fetch_missing`].
pub(super) async fn fetch_for_gateway(connection: &mut Connection, settings: &Settings, is_offline: bool, progress: &Progress) -> Outcome {
    let subject = connection.gateway_subject();
    let Some(papers) = connection.gateway.as_mut().filter(|papers| papers.collateral.is_none()) else { return Ok(()) };
    if let Some(quote) = subject.as_ref().and_then(Subject::td_quote) {
        let fetched = fetch_collateral(tdx_platform(quote), settings, is_offline, progress).await?;
        papers.collateral.clone_from(&fetched.collateral);
    }
    Ok(())
}

async fn fetch_collateral(
    platform: Result<Platform, QuoteError>,
    settings: &Settings,
    is_offline: bool,
    progress: &Progress,
) -> Outcome<Arc<Endorsements>> {
    let platform = platform
        .map_err(|error| Failure::new("verify/no-platform", error.to_string(), "ask for a quote with an embedded certificate chain"))?;
    if is_offline {
        return Err(missing("collateral", "give it with --collateral, or leave out --offline, once with --save"));
    }
    let step = progress.step("collateral");
    let operation = format!("fetching collateral from {}", settings.collateral_url);
    let client = CollateralClient::new(&settings.collateral_url)?.with_tls(system_tls());
    let fetched = client.endorsements_for(platform).await.map_err(|error| Failure::from(error).during(operation))?;
    step.done(&settings.collateral_url);
    Ok(fetched)
}

async fn fetch_chip_key(
    report: &UnverifiedReport,
    settings: &Settings,
    is_offline: bool,
    progress: &Progress,
) -> Outcome<Arc<Endorsements>> {
    let name = ChipKeyName::of_report(report).map_err(FetchError::from)?;
    if is_offline {
        let fix = "give the VCEK, which AMD's key distribution service has, with --chain, or leave out --offline, once with --save";
        return Err(missing("certificate of the key that signed", fix));
    }
    let step = progress.step("certificates of the chip's key");
    let operation = format!("fetching the certificates of the chip's key from {}", settings.amd_kds_url);
    let client = ChipKeyClient::new(&settings.amd_kds_url)?.with_tls(system_tls());
    let fetched = client.endorsements_for(name).await.map_err(|error| Failure::from(error).during(operation))?;
    step.done(&settings.amd_kds_url);
    Ok(fetched)
}

fn missing(what: &str, fix: &str) -> Failure {
    Failure::new("verify/no-collateral", format!("the evidence carries no {what}, and none may or can be fetched"), fix)
}
