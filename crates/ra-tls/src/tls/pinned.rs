//! Rules for servers that are known by their authority, or not at all.

use std::sync::{Arc, OnceLock};

use rustls::{
    Error, RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::WebPkiSupportedAlgorithms, server::ParsedCertificate,
};

use rustls_pki_types::CertificateDer;

use super::handshake::{PeerCertificates, Shown};
use crate::{Extension, RaTlsCertificate, usage};

/// The certificate that a server showed in the first handshake of a configuration; in later ones it must show the same.
#[derive(Debug, Clone, Default)]
pub struct ServerLeaf(Arc<OnceLock<CertificateDer<'static>>>);

impl ServerLeaf {
    /// The certificate; none before the first handshake.
    #[must_use]
    pub fn get(&self) -> Option<&CertificateDer<'static>> {
        self.0.get()
    }

    fn is_or_becomes(&self, leaf: &CertificateDer<'_>) -> bool {
        self.0.get_or_init(|| leaf.clone().into_owned()) == leaf
    }
}

/// Accepts servers under one root with one usage.
#[derive(Debug)]
pub(super) struct PinnedServer {
    roots: RootCertStore,
    usage: String,
    algorithms: WebPkiSupportedAlgorithms,
    leaf: Option<ServerLeaf>,
}

impl PinnedServer {
    pub(super) fn new(roots: RootCertStore, usage: &str, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { roots, usage: usage.to_owned(), algorithms, leaf: None }
    }

    /// Writes the server's certificate down in `leaf`, and accepts no other from then on.
    pub(super) fn keeping(self, leaf: ServerLeaf) -> Self {
        Self { leaf: Some(leaf), ..self }
    }
}

impl PeerCertificates for PinnedServer {
    fn accept(&self, shown: &Shown<'_>) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(shown.leaf)?;
        let is_kms = self.usage == usage::KMS_RPC;
        let intermediates = if is_kms { &[] } else { shown.intermediates };
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, shown.now, self.algorithms.all)?;
        let parsed = RaTlsCertificate::parse(shown.leaf).map_err(|error| Error::General(error.to_string()))?;
        if parsed.usage() != Some(self.usage.as_str()) {
            return Err(Error::General(format!("server certificate has usage {:?}, expected {:?}", parsed.usage(), self.usage)));
        }
        if is_kms && parsed.payload(Extension::AppId).is_some() {
            return Err(Error::General("server certificate is an application's, expected the KMS".to_owned()));
        }
        if self.leaf.as_ref().is_some_and(|leaf| !leaf.is_or_becomes(shown.leaf)) {
            return Err(Error::General("server changed its certificate".to_owned()));
        }
        Ok(())
    }
}

/// Accepts every server that has the key of the certificate it shows.
#[derive(Debug)]
pub(super) struct AnyServer;

impl PeerCertificates for AnyServer {
    fn accept(&self, _shown: &Shown<'_>) -> Result<(), Error> {
        Ok(())
    }
}
