//! Certificates that carry evidence (RA-TLS), as a relying party reads them.
//!
//! The evidence binds the certificate's key, so nothing here depends on who issued the certificate; the issuer's own statements
//! (app id, usage) are not believed.

use std::io::Read as _;

use dstack_attestation::{ContentType, Evidence, ReportData, report_data};
use dstack_event_log::parse_events;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{Subject, input::InputError};

/// Base of the object identifiers.
const OID: &str = "1.3.6.1.4.1.62397.1.";
const MAX_CERTIFICATE_BYTES: usize = 256 << 10;
/// A compressed log or attestation starts with this.
const COMPRESSED: &[u8] = b"ELGZv1";
/// Largest decompressed form that is read.
const MAX_DECOMPRESSED_BYTES: u64 = 256 << 10;

/// Why a certificate says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Not X.509.
    #[error("the certificate is malformed")]
    Malformed,
    /// No extension of ours.
    #[error("the certificate carries no evidence")]
    NoEvidence,
    /// The same extension twice, or not in its wrapping.
    #[error("the certificate's extension {OID}{arc} is {fault}")]
    Extension {
        /// Last arc of its identifier.
        arc: u8,
        /// What is wrong.
        fault: &'static str,
    },
    /// The log inside.
    #[error("the event log inside the certificate is malformed")]
    EventLog,
}

/// A certificate, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceCertificate {
    spki: Vec<u8>,
    subject: String,
    issuer: String,
    validity: (i64, i64),
    extensions: Vec<(u8, Vec<u8>)>,
}

impl EvidenceCertificate {
    /// Parses one DER certificate.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::Malformed);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let mut extensions: Vec<(u8, Vec<u8>)> = Vec::new();
        for extension in certificate.extensions() {
            let oid = extension.oid.to_id_string();
            let Some(arc) = oid.strip_prefix(OID).and_then(|arc| arc.parse().ok()) else { continue };
            if extensions.iter().any(|(known, _)| *known == arc) {
                return Err(CertificateError::Extension { arc, fault: "there twice" });
            }
            let payload = octet_string(extension.value).ok_or(CertificateError::Extension { arc, fault: "not an OCTET STRING" })?;
            extensions.push((arc, payload.to_vec()));
        }
        let validity = certificate.validity();
        Ok(Self {
            spki: certificate.public_key().raw.to_vec(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            validity: (validity.not_before.timestamp(), validity.not_after.timestamp()),
            extensions,
        })
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// Whom it names.
    #[must_use]
    pub fn subject_name(&self) -> &str {
        &self.subject
    }

    /// Who issued it, by its own word.
    #[must_use]
    pub fn issuer_name(&self) -> &str {
        &self.issuer
    }

    /// First and last second of validity, Unix.
    #[must_use]
    pub fn validity(&self) -> (i64, i64) {
        self.validity
    }

    /// The app its issuer names: 20 bytes.
    #[must_use]
    pub fn app_id(&self) -> Option<&[u8]> {
        self.extension(3).filter(|id| id.len() == 20)
    }

    /// Whether there is evidence inside.
    #[must_use]
    pub fn has_evidence(&self) -> bool {
        self.extension(1).or(self.extension(8)).is_some()
    }

    /// Report data that binds its key: `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        report_data(ContentType::RaTlsCert, &self.spki)
    }

    /// The evidence inside.
    pub(crate) fn subject(&self) -> Result<Subject, InputError> {
        if let Some(envelope) = self.extension(8) {
            return Subject::from_envelope(&decompressed(8, envelope)?);
        }
        let quote = self.extension(1).ok_or(CertificateError::NoEvidence)?;
        let event_log = match self.extension(2) {
            Some(log) => {
                let text = decompressed(2, log)?;
                let text = std::str::from_utf8(&text).map_err(|_| CertificateError::EventLog)?;
                parse_events(text).map_err(|_| CertificateError::EventLog)?
            }
            None => Vec::new(),
        };
        Ok(Subject::from_td_evidence(Evidence { event_log, ..Subject::td_evidence(quote.to_vec()) }))
    }

    fn extension(&self, arc: u8) -> Option<&[u8]> {
        self.extensions.iter().find(|(known, _)| *known == arc).map(|(_, payload)| payload.as_slice())
    }
}

/// Common name of a certificate, or what can be said of it; printable.
pub(crate) fn common_name(der: &[u8]) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return "a malformed certificate".to_owned() };
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or("no name");
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(80).collect()
}

/// The contents of an OCTET STRING that fills `der`.
fn octet_string(der: &[u8]) -> Option<&[u8]> {
    let (rest, contents) = <&[u8]>::from_der(der).ok()?;
    rest.is_empty().then_some(contents)
}

fn decompressed(arc: u8, payload: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, CertificateError> {
    let Some(packed) = payload.strip_prefix(COMPRESSED) else { return Ok(payload.into()) };
    let mut bytes = Vec::new();
    let unpacked = flate2::read::GzDecoder::new(packed).take(MAX_DECOMPRESSED_BYTES + 1).read_to_end(&mut bytes);
    let fault = match unpacked {
        Ok(_) if bytes.len() as u64 <= MAX_DECOMPRESSED_BYTES => return Ok(bytes.into()),
        Ok(_) => "too large when unpacked",
        Err(_) => "not gzip",
    };
    Err(CertificateError::Extension { arc, fault })
}
