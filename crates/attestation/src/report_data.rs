//! What the 64 bytes of report data mean.

use sha2::{Digest as _, Sha512};

/// The 64 bytes a quote carries for its requester.
pub type ReportData = [u8; 64];

/// What kind of content report data binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// Root key of a KMS.
    KmsRootCa,
    /// Subject public key info of an RA-TLS certificate.
    RaTlsCert,
    /// Data of an application.
    AppData,
}

impl ContentType {
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::KmsRootCa => b"kms-root-ca",
            Self::RaTlsCert => b"ratls-cert",
            Self::AppData => b"app-data",
        }
    }
}

/// `SHA-512(tag || ":" || content)`.
#[must_use]
pub fn report_data(kind: ContentType, content: &[u8]) -> ReportData {
    Sha512::new().chain_update(kind.tag()).chain_update(b":").chain_update(content).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_data_matches_the_published_vector() {
        let data = report_data(ContentType::AppData, b"test content");

        assert_eq!(hex::encode(data.split_at(16).0), "7ea0b744ed5e9c0c83ff9f575668e169");
    }
}
