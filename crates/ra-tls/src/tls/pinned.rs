//! Rules for servers that are known by their authority, or not at all.

use rustls::{
    Error, RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::WebPkiSupportedAlgorithms, server::ParsedCertificate,
};

use super::handshake::{PeerCertificates, Shown};
use crate::{Extension, RaTlsCertificate, usage};

/// Accepts servers under one root with one usage.
#[derive(Debug)]
pub(super) struct PinnedServer {
    roots: RootCertStore,
    usage: String,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedServer {
    pub(super) fn new(roots: RootCertStore, usage: &str, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { roots, usage: usage.to_owned(), algorithms }
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
