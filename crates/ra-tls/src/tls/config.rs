//! Configurations, made of an identity and a verifier.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, Error, RootCertStore, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    handshake::ByRule,
    pinned::{AnyServer, PinnedServer, ServerLeaf},
    sessions::{ClientSessions, MAX_SESSION_AGE, ServerSessions},
};
use crate::CertKey;

/// A certificate chain (leaf first) with the leaf's key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub key: CertKey,
}

impl Identity {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_pkcs8_der().to_vec()))
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Client that accepts only servers whose chain ends in `root` and whose leaf has `usage` (such as [`usage::KMS_RPC`](crate::usage::KMS_RPC)).
///
/// A KMS is issued by the root itself: for that usage no authority in between is accepted, and no certificate that names an application.
/// So nothing that an application's authority issues passes for the KMS. `identity`: shown when the server asks.
pub fn pinned_client(root: &CertificateDer<'static>, usage: &str, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    client(Arc::new(ByRule::new(pinned(root, usage)?, provider())), identity)
}

/// [`pinned_client`] that also says which certificate the server showed, so that the evidence in it can be judged before anything is sent,
/// and that accepts no other certificate afterwards: what was judged is what is talked to.
pub fn pinned_client_keeping_leaf(
    root: &CertificateDer<'static>,
    usage: &str,
    identity: Option<&Identity>,
) -> Result<(ClientConfig, ServerLeaf), Error> {
    let leaf = ServerLeaf::default();
    let rule = pinned(root, usage)?.keeping(leaf.clone());
    Ok((client(Arc::new(ByRule::new(rule, provider())), identity)?, leaf))
}

fn pinned(root: &CertificateDer<'static>, usage: &str) -> Result<PinnedServer, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    Ok(PinnedServer::new(roots, usage, provider().signature_verification_algorithms))
}

/// Client that accepts any server. What it hears is worth nothing by itself; it serves to fetch a KMS's certificates, which are then pinned.
pub fn danger_unverified_client() -> Result<ClientConfig, Error> {
    client(Arc::new(ByRule::new(AnyServer, provider())), None)
}

pub(super) fn client(verifier: Arc<dyn ServerCertVerifier>, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.private_key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::store(Arc::new(ClientSessions::new(MAX_SESSION_AGE)));
    Ok(config)
}

/// Server with `identity` that asks clients for a certificate under `client_authority` and also takes clients without one.
///
/// The evidence in a client's certificate is the application's to verify; the chain and possession of the key are checked here.
pub fn server(identity: &Identity, client_authority: &CertificateDer<'static>) -> Result<ServerConfig, Error> {
    server_with_session_age(identity, client_authority, MAX_SESSION_AGE)
}

fn server_with_session_age(
    identity: &Identity,
    client_authority: &CertificateDer<'static>,
    max_age: Duration,
) -> Result<ServerConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(client_authority.clone())?;
    let verifier: Arc<dyn ClientCertVerifier> = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    server_with(identity, verifier, max_age)
}

/// Server with `identity` that takes every client.
pub fn anonymous_server(identity: &Identity) -> Result<ServerConfig, Error> {
    server_with(identity, Arc::new(NoClientAuth), MAX_SESSION_AGE)
}

pub(super) fn server_with(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
    max_session_age: Duration,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.private_key())?;
    config.session_storage = Arc::new(ServerSessions::new(max_session_age));
    // Each holds the client's whole certificate with its evidence; a resumed session brings the next one.
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[cfg(test)]
mod tests;
