//! Peers that are known by their evidence alone: no authority is asked.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    config::{Identity, client, provider, server_with},
    sessions::MAX_SESSION_AGE,
};
use crate::{EvidenceVerifier, Refusal};

/// Client that accepts only servers whose certificate carries evidence that `verification` believes and that binds the server's key.
///
/// The verdict is reached inside the handshake, before anything is sent. A handshake cannot wait for collateral that is not in the cache:
/// run the first call through [`EvidenceVerifier::with_collateral`]. Who the server *is* stays the caller's question, answered from the
/// connection's certificate by [`EvidenceVerifier::of_certificate`], which finds the verdict in the cache.
pub fn attested_client(verification: &Arc<EvidenceVerifier>, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    client(Arc::new(Attested::new(verification, Collateral::AtHand)), identity)
}

/// Server with `identity` that accepts only clients whose certificate carries evidence.
///
/// Inside the handshake the evidence must not be wrong: a client of a platform whose collateral is not in the cache gets in, since a server
/// cannot ask it to come again. So every call must ask [`EvidenceVerifier::of_certificate`] for the verdict, as it must for a resumed
/// session.
pub fn attested_server(identity: &Identity, verification: &Arc<EvidenceVerifier>) -> Result<ServerConfig, Error> {
    server_with(identity, Arc::new(Attested::new(verification, Collateral::MayFollow)), MAX_SESSION_AGE)
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
    provider: Arc<CryptoProvider>,
}

impl Attested {
    fn new(verification: &Arc<EvidenceVerifier>, collateral: Collateral) -> Self {
        Self { verification: Arc::clone(verification), collateral, provider: provider() }
    }

    fn judge(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        match self.verification.of_certificate_at_hand(leaf, now.as_secs()) {
            Ok(_) => Ok(()),
            Err(Refusal::CollateralNotAtHand(_)) if self.collateral == Collateral::MayFollow => Ok(()),
            Err(refusal) => Err(Error::General(format!("the peer is not believed: {refusal}"))),
        }
    }
}

impl ServerCertVerifier for Attested {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Attested {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
