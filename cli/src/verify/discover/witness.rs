//! A TLS client that takes any certificate and remembers it.
//!
//! An app's certificate need not come from a public authority: its evidence says more. So the handshake only proves possession of the
//! key; what the certificate is worth is judged afterwards. A second certificate from the same server ends the connection, so that all
//! answers come from whoever holds the first key.

use std::sync::{Arc, Mutex, PoisonError};

use dstack_ra_tls::tls;
use rustls::{
    ClientConfig, Error, RootCertStore,
    client::{
        WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
};

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
pub(super) fn observed_tls() -> Result<(Arc<tls::ByRule<Witness>>, ClientConfig), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let public = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
    let witness = Arc::new(tls::ByRule::new(Witness { public, shown: Mutex::new(None) }, Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    Ok((witness, config))
}

impl tls::PeerCertificates for Witness {
    fn accept(&self, peer: &tls::Shown<'_>) -> Result<(), Error> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = shown.as_ref() {
            let is_same = first.chain.first().is_some_and(|leaf| leaf.as_slice() == peer.leaf.as_ref());
            return if is_same { Ok(()) } else { Err(Error::General("the server changed its certificate".to_owned())) };
        }
        let objection = self.ask_public(peer).err().map(|error| error.to_string());
        let chain = std::iter::once(peer.leaf).chain(peer.intermediates).map(|der| der.to_vec()).collect();
        *shown = Some(Shown { chain, objection });
        Ok(())
    }
}

impl Witness {
    /// What the public authorities that this machine trusts make of it.
    fn ask_public(&self, peer: &tls::Shown<'_>) -> Result<ServerCertVerified, Error> {
        let (Some(public), Some(name)) = (&self.public, peer.server_name) else {
            return Err(Error::General("this machine trusts no public authority".to_owned()));
        };
        public.verify_server_cert(peer.leaf, peer.intermediates, name, peer.ocsp_response, peer.now)
    }
}
