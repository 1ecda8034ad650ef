//! An ingress inside the app's VM, which ends TLS for a domain of the app's own.
//!
//! It publishes below `/evidences/`: `quote.json`, `sha256sum.txt` and the certificate. The quote's report data is the SHA-256 of
//! `sha256sum.txt`, whose lines bind the certificate file.

use dstack_attestation::parse_certificates;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Server;

pub(super) const QUOTE_PATH: &str = "/evidences/quote.json";

/// What it publishes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::verify) struct IngressPapers {
    /// JSON with a quote.
    pub quote: String,
    /// `sha256sum.txt`.
    pub checksums: String,
    /// The certificate file, PEM.
    pub certificate: String,
}

impl IngressPapers {
    /// Fetches them; `None` if they are not all there.
    pub(super) async fn fetch(server: &Server, host: &str) -> Option<Self> {
        let checksums = server.text("/evidences/sha256sum.txt").await?;
        let quote = server.text(QUOTE_PATH).await?;
        let certificate = server.text(&format!("/evidences/cert-{host}.pem")).await?;
        Some(Self { quote, checksums, certificate })
    }

    /// Report data that binds the checksums: their SHA-256, then zeros.
    pub(super) fn report_data(&self) -> Vec<u8> {
        let mut data = Sha256::digest(self.checksums.as_bytes()).to_vec();
        data.resize(64, 0);
        data
    }

    /// Whether the checksums name the certificate file, and that file holds `leaf`.
    pub(super) fn binds(&self, leaf: &[u8]) -> bool {
        let digest = hex::encode(Sha256::digest(self.certificate.as_bytes()));
        let is_listed = self.checksums.lines().any(|line| line.split_ascii_whitespace().next() == Some(digest.as_str()));
        is_listed && parse_certificates(self.certificate.as_bytes()).is_ok_and(|chain| chain.first().is_some_and(|first| first == leaf))
    }
}
