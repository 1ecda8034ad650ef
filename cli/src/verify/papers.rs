//! The vendor's papers for evidence: collateral and certificates, from wherever they are.

use std::sync::Arc;

use dstack_attestation::{Endorsements, QuoteCollateral, UnverifiedQuote, UnverifiedSgxQuote, parse_certificates, sev_snp};
use dstack_ra_tls::collateral::CollateralClient;
use dstack_rpc::system_tls;
use dstack_verdict::{Kind, Subject};

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
    let mut certificates = subject.saved.certificates.clone();
    for file in &given.chain {
        certificates.extend(parse_certificates(file).map_err(|error| format!("a file of --chain: {error}"))?);
    }
    Ok(Endorsements { collateral, certificates, ..Endorsements::default() })
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
    if let (Some(quote), None) = (subject.td_quote(), &endorsements.collateral) {
        let fetched = fetch_collateral(quote, settings, is_offline, progress).await?;
        endorsements.collateral.clone_from(&fetched.collateral);
        return Ok(());
    }
    match &subject.kind {
        // The papers of SGX differ from those of TDX, and the client asks for the latter.
        Kind::Sgx(quote) if endorsements.collateral.is_none() && UnverifiedSgxQuote::parse(quote).is_ok() => {
            Err(missing("collateral", "give it with --collateral: it is not fetched for SGX"))
        }
        Kind::SevSnp(evidence)
            if endorsements.certificates.is_empty()
                && evidence.certificates.is_empty()
                && sev_snp::UnverifiedReport::parse(&evidence.report).is_ok() =>
        {
            Err(missing(
                "certificate of the key that signed",
                "give the VCEK or VLEK, which AMD's key distribution service has, with --chain",
            ))
        }
        _ => Ok(()),
    }
}

/// Fetches the collateral of a gateway's machine, where a gateway ends TLS.
///
/// Errors: as [`fetch_missing`].
pub(super) async fn fetch_for_gateway(connection: &mut Connection, settings: &Settings, is_offline: bool, progress: &Progress) -> Outcome {
    let subject = connection.gateway_subject();
    let Some(papers) = connection.gateway.as_mut().filter(|papers| papers.collateral.is_none()) else { return Ok(()) };
    if let Some(quote) = subject.as_ref().and_then(Subject::td_quote) {
        let fetched = fetch_collateral(quote, settings, is_offline, progress).await?;
        papers.collateral.clone_from(&fetched.collateral);
    }
    Ok(())
}

async fn fetch_collateral(quote: &[u8], settings: &Settings, is_offline: bool, progress: &Progress) -> Outcome<Arc<Endorsements>> {
    let platform =
        UnverifiedQuote::parse(quote).and_then(|quote| quote.pck_chain()).and_then(|chain| Ok((chain.fmspc()?, chain.issuer()?)));
    let (fmspc, issuer) = platform
        .map_err(|error| Failure::new("verify/no-platform", error.to_string(), "ask for a quote with an embedded certificate chain"))?;
    if is_offline {
        return Err(missing("collateral", "give it with --collateral, or save the evidence with --save"));
    }
    let step = progress.step("collateral");
    let operation = format!("fetching collateral from {}", settings.collateral_url);
    let client = CollateralClient::new(&settings.collateral_url)?.with_tls(system_tls());
    let fetched = client.endorsements_for(fmspc, issuer).await.map_err(|error| Failure::from(error).during(operation))?;
    step.done(&settings.collateral_url);
    Ok(fetched)
}

fn missing(what: &str, fix: &str) -> Failure {
    Failure::new("verify/no-collateral", format!("the evidence carries no {what}, and none may or can be fetched"), fix)
}
