//! The vendor's collateral for a quote.

use dstack_attestation::{Endorsements, UnverifiedQuote};
use dstack_ra_tls::collateral::CollateralClient;
use dstack_rpc::system_tls;

use super::{settings::Settings, source::Collected};
use crate::{
    failure::{Failure, Outcome},
    progress::Progress,
};

/// From the configuration, else from the collateral service, else (offline) from the evidence file.
///
/// Errors: there is none, so the question cannot be decided.
pub(super) async fn find(
    is_offline: bool,
    settings: &Settings,
    collected: &Collected,
    quote: &UnverifiedQuote,
    progress: &Progress,
) -> Outcome<Endorsements> {
    if let Some(collateral) = &settings.collateral {
        return Ok(collateral.clone().into());
    }
    if is_offline {
        let fix = "leave --offline out, set collateral_file in the configuration, or save the evidence with --save";
        let none = || Failure::new("verify/no-collateral", "the evidence carries no collateral, and --offline forbids to fetch it", fix);
        return Ok(collected.collateral.clone().ok_or_else(none)?.into());
    }
    let step = progress.step("collateral");
    let operation = format!("fetching collateral from {}", settings.collateral_url);
    let (fmspc, issuer) = match (quote.fmspc(), quote.pck_issuer()) {
        (Ok(fmspc), Ok(issuer)) => (fmspc, issuer),
        (Err(error), _) | (_, Err(error)) => {
            return Err(Failure::new("verify/no-platform", error.to_string(), "ask for a quote with an embedded certificate chain")
                .during(operation));
        }
    };
    let client = CollateralClient::new(&settings.collateral_url)?.with_tls(system_tls());
    let endorsements = client.endorsements_for(fmspc, issuer).await.map_err(|error| Failure::from(error).during(operation))?;
    step.done(&settings.collateral_url);
    Ok((*endorsements).clone())
}
