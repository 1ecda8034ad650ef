//! A TLS client that takes any certificate and remembers it.
//!
//! An app's certificate need not come from a public authority: its evidence says more. So the handshake only proves possession of the
//! key; what the certificate is worth is judged afterwards. A second certificate from the same server ends the connection, so that all
//! answers come from whoever holds the first key.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// What a server showed.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// Why browsers would not accept it; `None` if they would.
    pub objection: Option<String>,
}

/// Sees the certificates of one server.
#[derive(Debug)]
pub(super) struct Witness {
    provider: Arc<CryptoProvider>,
    public: Option<Arc<WebPkiServerVerifier>>,
    shown: Mutex<Option<Shown>>,
}

impl Witness {
    /// What the server showed first.
    pub(super) fn shown(&self) -> Option<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A configuration, and who watches over it.
///
/// Errors: the TLS library does not support its own defaults.
pub(super) fn observed_tls() -> Result<(Arc<Witness>, ClientConfig), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let public = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
    let witness = Arc::new(Witness { provider: Arc::clone(&provider), public, shown: Mutex::new(None) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    Ok((witness, config))
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = shown.as_ref() {
            let is_same = first.chain.first().is_some_and(|leaf| leaf.as_slice() == end_entity.as_ref());
            return if is_same {
                Ok(ServerCertVerified::assertion())
            } else {
                Err(Error::General("the server changed its certificate".to_owned()))
            };
        }
        let accepted = match &self.public {
            Some(public) => public.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now).map(|_| ()),
            None => Err(Error::General("this machine trusts no public authority".to_owned())),
        };
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.to_vec()).collect();
        *shown = Some(Shown { chain, objection: accepted.err().map(|error| error.to_string()) });
        Ok(ServerCertVerified::assertion())
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
