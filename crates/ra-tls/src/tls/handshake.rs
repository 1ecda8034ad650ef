//! The part of a certificate verifier that is the same for all: the handshake's signatures.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// What a peer shows in a handshake.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its certificate.
    pub leaf: &'a CertificateDer<'a>,
    /// What it sent beside it.
    pub intermediates: &'a [CertificateDer<'a>],
    /// The server that was asked for; `None` of a client.
    pub server_name: Option<&'a ServerName<'a>>,
    /// OCSP response of a server; often empty.
    pub ocsp_response: &'a [u8],
    /// Clock of the handshake.
    pub now: UnixTime,
}

/// Whether the certificates of a peer are acceptable. That the peer has the key of the first one is proven in any case.
pub trait PeerCertificates: std::fmt::Debug + Send + Sync {
    /// Judges what a peer shows.
    ///
    /// Errors: it is not accepted; ends the handshake.
    fn accept(&self, shown: &Shown<'_>) -> Result<(), Error>;
}

/// A rustls verifier of either end that asks `rule` about certificates and checks the handshake's signature with its provider.
#[derive(Debug)]
pub struct ByRule<R> {
    rule: R,
    provider: Arc<CryptoProvider>,
}

impl<R: PeerCertificates> ByRule<R> {
    /// A verifier by `rule`.
    #[must_use]
    pub fn new(rule: R, provider: Arc<CryptoProvider>) -> Self {
        Self { rule, provider }
    }

    /// The rule, to ask it what it saw.
    #[must_use]
    pub fn rule(&self) -> &R {
        &self.rule
    }

    fn tls12(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn tls13(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<R: PeerCertificates> ServerCertVerifier for ByRule<R> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Shown { leaf: end_entity, intermediates, server_name: Some(server_name), ocsp_response, now };
        self.rule.accept(&shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl<R: PeerCertificates> ClientCertVerifier for ByRule<R> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let shown = Shown { leaf: end_entity, intermediates, server_name: None, ocsp_response: &[], now };
        self.rule.accept(&shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
