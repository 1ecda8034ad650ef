//! A gateway that ends TLS in its own VM, and what it publishes about its certificate.

use dstack_attestation::QuoteCollateral;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use super::Server;

/// What a gateway publishes about itself. Untrusted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::verify) struct GatewayPapers {
    /// Where.
    pub origin: String,
    /// `AcmeInfo`: one quote for every key it ever had a certificate for. JSON text.
    pub acme_info: String,
    /// `Info` of its guest agent, JSON text; empty if it does not publish it.
    pub app_info: String,
    /// Collateral of the machine it runs on, once fetched.
    pub collateral: Option<QuoteCollateral>,
}

#[derive(Deserialize)]
struct AcmeInfo {
    #[serde(default)]
    account_uri: String,
    #[serde(default)]
    quoted_hist_keys: Vec<QuotedKey>,
}

#[derive(Deserialize)]
struct QuotedKey {
    public_key: String,
    #[serde(default)]
    quote: String,
    #[serde(default)]
    attestation: String,
}

impl GatewayPapers {
    /// Fetches them; `None` if there are none.
    pub(super) async fn fetch(origin: &str) -> Option<Self> {
        let server = Server::new(origin, super::SHORT_TIMEOUT).ok()?;
        let acme_info = server.text("/.dstack/acme-info").await?;
        let app_info = server.text("/.dstack/app-info").await.unwrap_or_default();
        Some(Self { origin: origin.to_owned(), acme_info, app_info, collateral: None })
    }

    /// The evidence for the key `spki` (DER): JSON text.
    pub(in crate::verify) fn evidence_for(&self, spki: &[u8]) -> Option<String> {
        let info: AcmeInfo = serde_json::from_str(&self.acme_info).ok()?;
        let key = hex::encode(spki);
        let found = info.quoted_hist_keys.into_iter().find(|quoted| quoted.public_key.eq_ignore_ascii_case(&key))?;
        Some(if found.quote.is_empty() { found.attestation } else { found.quote })
    }

    /// The account at the certificate authority.
    pub(super) fn account(&self) -> String {
        serde_json::from_str::<AcmeInfo>(&self.acme_info).map(|info| info.account_uri).unwrap_or_default()
    }
}

/// Report data that binds a gateway's key: `SHA-512("zt-cert:" || SubjectPublicKeyInfo)`.
pub(super) fn report_data(spki: &[u8]) -> Vec<u8> {
    Sha512::new().chain_update(b"zt-cert:").chain_update(spki).finalize().to_vec()
}
