//! TLS to public services.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

/// A TLS configuration that trusts what this machine trusts, without a client certificate.
///
/// A machine without a root store yields a configuration that trusts nobody; connections then fail with `rpc/tls`.
#[must_use]
pub fn system_tls() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a root certificate cannot be read");
    }
    let (added, _) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, "system roots loaded");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_protocol_versions(rustls::ALL_VERSIONS);
    let config = config.unwrap_or_else(|_| unreachable!("the provider supports its own protocol versions"));
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}
