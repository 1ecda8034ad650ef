//! A certificate a peer showed.

use std::io::Read as _;

use dstack_api::UserFacing;
use dstack_attestation::{
    ContentType, Endorsements, EnvelopeError, Evidence, GuestEvidence, ReportData, VerifiedEvidence, Verifier, VerifyError, report_data,
};
use dstack_event_log::{Event, parse_events};
use dstack_manifest::AppId;
use flate2::read::GzDecoder;

use crate::{
    AppInfo,
    extension::{Extension, unwrap},
};

/// Largest certificate that is parsed.
const MAX_CERTIFICATE_BYTES: usize = 256 << 10;
const MAX_LOG_BYTES: usize = 256 << 10;
/// Before a gzip stream in the event log extension.
const COMPRESSED_LOG: &[u8] = b"ELGZv1";
/// Largest log that is unpacked.
const MAX_UNPACKED_LOG_BYTES: u64 = 16 << 10;

/// Bytes that are not a usable certificate. The peer is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Too long.
    #[error("certificate has {got} bytes, at most {MAX_CERTIFICATE_BYTES} are read")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not X.509.
    #[error("bytes are not one X.509 certificate")]
    Malformed,
    /// The same extension twice, or one that is not an OCTET STRING.
    #[error("certificate extension {oid} is {fault}")]
    Extension {
        /// Its object identifier.
        oid: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The evidence inside cannot be read.
    #[error("evidence inside the certificate cannot be read: {reason}")]
    Evidence {
        /// Why.
        reason: String,
    },
    /// Out of its dates.
    #[error("certificate is valid from {not_before} to {not_after}, it is {now} now (Unix seconds)")]
    Dates {
        /// First second.
        not_before: i64,
        /// Last second.
        not_after: i64,
        /// The clock given.
        now: u64,
    },
    /// Evidence of a platform this release does not verify.
    #[error("evidence inside the certificate")]
    NotImplemented(#[source] EnvelopeError),
}

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The certificate itself.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no evidence in it.
    #[error("certificate carries no evidence")]
    NoEvidence,
    /// The evidence is refused.
    #[error(transparent)]
    Evidence(#[from] VerifyError),
}

impl UserFacing for PeerError {
    fn code(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "ra-tls/certificate",
            Self::NoEvidence => "ra-tls/no-evidence",
            Self::Evidence(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Certificate(_) | Self::NoEvidence => "connect with an RA-TLS certificate of this release".to_owned(),
            Self::Evidence(error) => error.fix(),
        }
    }
}

/// The report data that binds a key: `SHA-512("ratls-cert:" || SubjectPublicKeyInfo DER)`.
#[must_use]
pub fn ra_tls_report_data(spki_der: &[u8]) -> ReportData {
    report_data(ContentType::RaTlsCert, spki_der)
}

/// The report data that binds a key and, where there is one, a nonce of the verifier: with it,
/// `SHA-512("ratls-cert:" || "nonce:" || nonce || SubjectPublicKeyInfo DER)`, else [`ra_tls_report_data`].
///
/// A SubjectPublicKeyInfo begins with a DER SEQUENCE and never with `n`, so the two forms cannot meet.
#[must_use]
pub fn ra_tls_report_data_with(spki_der: &[u8], nonce: Option<&[u8]>) -> ReportData {
    match nonce {
        Some(nonce) => report_data(ContentType::RaTlsCert, &[b"nonce:", nonce, spki_der].concat()),
        None => ra_tls_report_data(spki_der),
    }
}

/// A parsed certificate. Neither its signature nor its contents are verified; TLS checks the chain and possession of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaTlsCertificate {
    spki: Vec<u8>,
    payloads: Vec<(Extension, Vec<u8>)>,
    not_before: i64,
    not_after: i64,
}

impl RaTlsCertificate {
    /// Parses one DER certificate.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLong { got: der.len() });
        }
        let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let mut payloads = Vec::new();
        for extension in Extension::ALL {
            let oid = extension.oid_text();
            let mut found = certificate.extensions().iter().filter(|candidate| candidate.oid.to_id_string() == oid);
            let Some(first) = found.next() else { continue };
            if found.next().is_some() {
                return Err(CertificateError::Extension { oid, fault: "there twice" });
            }
            let payload = unwrap(first.value).ok_or(CertificateError::Extension { oid, fault: "not an OCTET STRING" })?;
            payloads.push((extension, payload.to_vec()));
        }
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { spki: certificate.public_key().raw.to_vec(), payloads, not_before, not_after })
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// Last second of validity, Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether the certificate is valid at `now` (Unix seconds).
    ///
    /// TLS looks at a chain's dates when it verifies the chain; a resumed session brings the chain of an earlier day.
    pub fn check_dates(&self, now: u64) -> Result<(), CertificateError> {
        let seconds = i64::try_from(now).unwrap_or(i64::MAX);
        if (self.not_before..=self.not_after).contains(&seconds) {
            return Ok(());
        }
        Err(CertificateError::Dates { not_before: self.not_before, not_after: self.not_after, now })
    }

    /// Payload of an extension.
    #[must_use]
    pub fn payload(&self, extension: Extension) -> Option<&[u8]> {
        self.payloads.iter().find(|(present, _)| *present == extension).map(|(_, payload)| payload.as_slice())
    }

    /// The application the issuer names; `None` if there is none or it is not 20 bytes.
    #[must_use]
    pub fn app_id(&self) -> Option<AppId> {
        self.payload(Extension::AppId).and_then(|payload| AppId::try_from(payload).ok())
    }

    /// The nonce that its evidence claims to be made for. Bound by the evidence, so worth something once that is verified.
    #[must_use]
    pub fn nonce(&self) -> Option<&[u8]> {
        self.payload(Extension::Nonce)
    }

    /// What the evidence must carry to belong to this certificate.
    pub(crate) fn expected_report_data(&self) -> ReportData {
        ra_tls_report_data_with(&self.spki, self.nonce())
    }

    /// The usage the issuer names.
    #[must_use]
    pub fn usage(&self) -> Option<&str> {
        self.payload(Extension::CertUsage).and_then(|payload| std::str::from_utf8(payload).ok())
    }

    /// What the issuer says about the application.
    #[must_use]
    pub fn app_info(&self) -> Option<AppInfo> {
        self.payload(Extension::AppInfo).and_then(AppInfo::decode)
    }

    /// The evidence inside, of a TD, unverified; `None` if there is none.
    ///
    /// Errors: malformed, or of another platform.
    pub fn evidence(&self) -> Result<Option<Evidence>, CertificateError> {
        self.guest_evidence()?.map(GuestEvidence::into_td).transpose().map_err(CertificateError::NotImplemented)
    }

    /// The evidence inside, unverified; `None` if there is none.
    ///
    /// Both forms are read: the attestation envelope, and the quote with its log of older releases.
    pub fn guest_evidence(&self) -> Result<Option<GuestEvidence>, CertificateError> {
        if let Some(envelope) = self.payload(Extension::Attestation) {
            return match GuestEvidence::decode(envelope) {
                Ok(evidence) => Ok(Some(evidence)),
                Err(error @ EnvelopeError::NotImplemented { .. }) => Err(CertificateError::NotImplemented(error)),
                Err(error) => Err(CertificateError::Evidence { reason: error.to_string() }),
            };
        }
        let Some(quote) = self.payload(Extension::TdxQuote) else { return Ok(None) };
        let event_log = match self.payload(Extension::EventLog) {
            Some(log) => parse_log(log)?,
            None => Vec::new(),
        };
        Ok(Some(Evidence { quote: quote.to_vec(), event_log, vm_config: String::new(), report_data: None, app_compose: None }.into()))
    }

    /// Verifies the evidence inside, and that it binds this certificate's key.
    ///
    /// `vm_config`: the peer's configuration from elsewhere (a request), used instead of the one inside when not empty.
    /// `now`: Unix seconds. The chain and possession of the key are TLS's part.
    pub fn verify(&self, verifier: &Verifier, endorsements: &Endorsements, now: u64, vm_config: &str) -> Result<VerifiedPeer, PeerError> {
        let mut evidence = self.guest_evidence()?.ok_or(PeerError::NoEvidence)?;
        if !vm_config.is_empty() {
            evidence = evidence.with_vm_config(vm_config);
        }
        let expected = self.expected_report_data();
        let evidence = verifier.verify_guest(&evidence, endorsements, now, Some(&expected))?;
        Ok(VerifiedPeer { evidence, spki: self.spki.clone() })
    }
}

fn parse_log(payload: &[u8]) -> Result<Vec<Event>, CertificateError> {
    let refused = |reason: &str| CertificateError::Evidence { reason: reason.to_owned() };
    let unpacked;
    let text = match payload.strip_prefix(COMPRESSED_LOG) {
        Some(compressed) => {
            let mut text = Vec::new();
            let read = GzDecoder::new(compressed).take(MAX_UNPACKED_LOG_BYTES + 1).read_to_end(&mut text);
            read.map_err(|_| refused("the compressed event log is malformed"))?;
            if text.len() as u64 > MAX_UNPACKED_LOG_BYTES {
                return Err(refused("the compressed event log is longer than 16 KiB"));
            }
            unpacked = text;
            unpacked.as_slice()
        }
        None => payload,
    };
    if text.len() > MAX_LOG_BYTES {
        return Err(refused("the event log is too long"));
    }
    let text = std::str::from_utf8(text).map_err(|_| refused("the event log is not text"))?;
    parse_events(text).map_err(|error| refused(&error.to_string()))
}

/// A peer whose evidence holds and binds the key of its certificate.
#[derive(Debug, Clone)]
pub struct VerifiedPeer {
    evidence: VerifiedEvidence,
    spki: Vec<u8>,
}

impl VerifiedPeer {
    /// What was verified.
    #[must_use]
    pub fn evidence(&self) -> &VerifiedEvidence {
        &self.evidence
    }

    /// Gives up the binding to the key.
    #[must_use]
    pub fn into_evidence(self) -> VerifiedEvidence {
        self.evidence
    }

    /// The bound key.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }
}
