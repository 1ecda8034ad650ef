//! Peers that are known by their evidence alone: no authority is asked.

use std::sync::Arc;

use rustls::{ClientConfig, Error, ServerConfig};

use super::{
    config::{Identity, client, provider, server_with},
    handshake::{ByRule, PeerCertificates, Shown},
    sessions::MAX_SESSION_AGE,
};
use crate::{EvidenceVerifier, Refusal};

/// Client that accepts only servers whose certificate carries evidence that `verification` believes and that binds the server's key.
///
/// The verdict is reached inside the handshake, before anything is sent. A handshake cannot wait for collateral that is not in the cache:
/// run the first call through [`EvidenceVerifier::with_collateral`]. Who the server *is* stays the caller's question, answered from the
/// connection's certificate by [`EvidenceVerifier::of_certificate`], which finds the verdict in the cache.
pub fn attested_client(verification: &Arc<EvidenceVerifier>, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    client(attested(verification, Collateral::AtHand), identity)
}

/// Server with `identity` that accepts only clients whose certificate carries evidence.
///
/// Inside the handshake the evidence must not be wrong: a client of a platform whose collateral is not in the cache gets in, since a server
/// cannot ask it to come again. So every call must ask [`EvidenceVerifier::of_certificate`] for the verdict, as it must for a resumed
/// session.
pub fn attested_server(identity: &Identity, verification: &Arc<EvidenceVerifier>) -> Result<ServerConfig, Error> {
    server_with(identity, attested(verification, Collateral::MayFollow), MAX_SESSION_AGE)
}

/// What a handshake does without collateral.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collateral {
    AtHand,
    MayFollow,
}

#[derive(Debug)]
struct Attested {
    verification: Arc<EvidenceVerifier>,
    collateral: Collateral,
}

fn attested(verification: &Arc<EvidenceVerifier>, collateral: Collateral) -> Arc<ByRule<Attested>> {
    Arc::new(ByRule::new(Attested { verification: Arc::clone(verification), collateral }, provider()))
}

impl PeerCertificates for Attested {
    fn accept(&self, shown: &Shown<'_>) -> Result<(), Error> {
        match self.verification.of_certificate_at_hand(shown.leaf, shown.now.as_secs()) {
            Ok(_) => Ok(()),
            Err(Refusal::CollateralNotAtHand(_)) if self.collateral == Collateral::MayFollow => Ok(()),
            Err(refusal) => Err(Error::General(format!("the peer is not believed: {refusal}"))),
        }
    }
}
