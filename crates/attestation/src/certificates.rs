//! Certificates as files and envelopes carry them.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject as _};
use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList};

/// Why bytes are not certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificatesError {
    /// Neither form.
    #[error("neither a certificate in DER nor certificates in PEM")]
    None,
    /// A block of PEM is broken.
    #[error("certificate in PEM: {reason}")]
    Pem {
        /// What the parser met.
        reason: String,
    },
}

/// Every certificate of `bytes`, DER: PEM with any number of them and any text between, or one in DER, which is not looked into.
///
/// Errors: there is none, or one is broken.
pub fn parse_certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificatesError> {
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec()]);
    }
    let certificates = certificates_of_pem(bytes)?;
    if certificates.is_empty() { Err(CertificatesError::None) } else { Ok(certificates) }
}

/// The first certificate of `bytes`, DER: see [`parse_certificates`]. For files that name one certificate.
///
/// Errors: there is none, or one is broken.
pub fn parse_certificate(bytes: &[u8]) -> Result<Vec<u8>, CertificatesError> {
    parse_certificates(bytes)?.into_iter().next().ok_or(CertificatesError::None)
}

/// The revocation list that `bytes` are, DER: one in DER, or the first of PEM. `None`: they are none.
#[must_use]
pub fn parse_revocation_list(bytes: &[u8]) -> Option<Vec<u8>> {
    let der = match bytes.first() {
        Some(0x30) => bytes.to_vec(),
        _ => CertificateRevocationListDer::from_pem_slice(bytes).ok()?.to_vec(),
    };
    let is_whole = matches!(CertificateRevocationList::from_der(&der), Ok(([], _)));
    is_whole.then_some(der)
}

/// DER of every certificate in `pem`; none is no error.
pub(crate) fn certificates_of_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, CertificatesError> {
    let broken = |error| CertificatesError::Pem { reason: format!("{error:?}") };
    CertificateDer::pem_slice_iter(pem).map(|der| der.map(|der| der.to_vec()).map_err(broken)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn both_forms_are_read() {
        let der = vec![0x30, 0];

        assert_eq!(parse_certificates(&der).unwrap(), std::slice::from_ref(&der));
        assert_eq!(parse_certificate(ONE.as_bytes()), Ok(der.clone()));
        assert_eq!(parse_certificates(format!("text\n{ONE}text\n{ONE}").as_bytes()).unwrap(), [der.clone(), der]);
    }

    #[test]
    fn nothing_and_broken_blocks_are_refused() {
        assert_eq!(parse_certificates(b""), Err(CertificatesError::None));
        assert_eq!(parse_certificates(b"hello"), Err(CertificatesError::None));
        assert_eq!(parse_certificate(b"hello"), Err(CertificatesError::None));
        let broken = format!("{ONE}-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
        assert!(matches!(parse_certificates(broken.as_bytes()), Err(CertificatesError::Pem { .. })));
    }

    #[test]
    fn revocation_lists_are_told_from_certificates_and_broken_ones() {
        let collateral = include_str!("../tests/testdata/tdx/collateral/b0c06f000000-tdx-platform-20250313-e17.json");
        let list = crate::QuoteCollateral::parse_json(collateral).unwrap().root_ca_crl;
        let pem = format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", STANDARD.encode(&list));

        assert_eq!(parse_revocation_list(&list), Some(list.clone()));
        assert_eq!(parse_revocation_list(pem.as_bytes()), Some(list.clone()));
        assert_eq!(parse_revocation_list(&list[..list.len() - 1]), None);
        assert_eq!(parse_revocation_list(&[list.as_slice(), &[0]].concat()), None);
        assert_eq!(parse_revocation_list(include_bytes!("../roots/intel-sgx-root-ca.der")), None);
        assert_eq!(parse_revocation_list(b""), None);
    }
}
