//! Evidence as it arrives, unverified.

use std::borrow::Cow;

use dstack_event_log::{Event, parse_events};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Attestation, Envelope, EnvelopeError, PlatformEvidence, ReportData, sev_snp::SnpEvidence};

/// Largest JSON form that is read. Evidence has some 10 KiB; with a log, a document and collateral rarely 1 MiB. What a reader keeps of the
/// text beside the text itself is bounded by it, so that no evidence makes a verifier use more than 64 MiB.
pub const MAX_EVIDENCE_BYTES: usize = 12 << 20;

/// Why text is not evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Too long.
    #[error("evidence of {got} bytes exceeds the limit of {MAX_EVIDENCE_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the JSON form.
    #[error("evidence is not valid JSON of the expected form: {reason}")]
    Json {
        /// What the parser met.
        reason: String,
    },
    /// A field's text is not what it should be.
    #[error("evidence field {field} is malformed")]
    Field {
        /// Its name.
        field: &'static str,
    },
    /// Neither a quote nor an attestation.
    #[error("evidence has neither a quote nor an attestation")]
    Empty,
    /// The attestation cannot be read.
    #[error("attestation inside the evidence")]
    Envelope(#[from] EnvelopeError),
}

/// A quote and what it takes to understand it. Everything in it is unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Raw TDX quote.
    pub quote: Vec<u8>,
    /// Log, full or stripped.
    pub event_log: Vec<Event>,
    /// The `vm_config` JSON text; empty if unknown.
    pub vm_config: String,
    /// What the sender says the report data is; must agree with the quote.
    pub report_data: Option<ReportData>,
    /// Bytes of `app-compose.json`, if the sender shows them; must hash to the measured compose hash.
    pub app_compose: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct WireEvidence<'a> {
    #[serde(default)]
    quote: String,
    #[serde(default, borrow)]
    event_log: Option<&'a RawValue>,
    #[serde(default)]
    vm_config: String,
    #[serde(default)]
    report_data: String,
    #[serde(default)]
    attestation: String,
    #[serde(default)]
    app_compose: Option<String>,
}

impl Evidence {
    /// Reads the JSON answer of `GetQuote`, of `/.well-known/dstack/evidence`, or `{"attestation":"<hex>"}`. Unknown fields are ignored.
    pub fn parse_json(text: &str) -> Result<Self, EvidenceError> {
        if text.len() > MAX_EVIDENCE_BYTES {
            return Err(EvidenceError::TooLong { got: text.len() });
        }
        let wire: WireEvidence<'_> = serde_json::from_str(text).map_err(|error| EvidenceError::Json { reason: error.to_string() })?;
        let mut evidence = if wire.quote.is_empty() {
            if wire.attestation.is_empty() {
                return Err(EvidenceError::Empty);
            }
            let bytes = hex_field("attestation", &wire.attestation)?;
            Self::from(Attestation::decode(&bytes)?)
        } else {
            Self {
                quote: hex_field("quote", &wire.quote)?,
                event_log: parse_log(wire.event_log)?,
                vm_config: String::new(),
                report_data: None,
                app_compose: None,
            }
        };
        if !wire.report_data.is_empty() {
            evidence.report_data = Some(padded_report_data(&hex_field("report_data", &wire.report_data)?)?);
        }
        if !wire.vm_config.is_empty() {
            evidence.vm_config = wire.vm_config;
        }
        evidence.app_compose = wire.app_compose.map(String::into_bytes);
        Ok(evidence)
    }

    /// The same evidence with another `vm_config`, as a request to a KMS carries one. It stays untrusted until the registers agree.
    #[must_use]
    pub fn with_vm_config(mut self, vm_config: impl Into<String>) -> Self {
        self.vm_config = vm_config.into();
        self
    }
}

impl From<Attestation> for Evidence {
    fn from(attestation: Attestation) -> Self {
        let vm_config = attestation.vm_config();
        let mut event_log = attestation.event_log;
        if !event_log.iter().any(|event| event.as_runtime().is_some()) {
            event_log.extend(attestation.runtime_events.iter().map(dstack_event_log::RuntimeEvent::to_event));
        }
        Self { quote: attestation.quote, event_log, vm_config, report_data: Some(attestation.report_data), app_compose: None }
    }
}

/// Evidence of a guest whose whole identity can be verified, by platform. Unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestEvidence {
    /// Intel TDX.
    Td(Evidence),
    /// AMD SEV-SNP.
    SevSnp(SnpEvidence),
}

impl GuestEvidence {
    /// Reads an envelope of either version; it must fill `bytes`.
    ///
    /// Errors: malformed, or of another platform.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::decode(bytes)?;
        match envelope.evidence {
            PlatformEvidence::SevSnp { .. } => SnpEvidence::try_from(envelope).map(Self::SevSnp),
            _ => Attestation::try_from(envelope).map(|attestation| Self::Td(attestation.into())),
        }
    }

    /// The evidence of a TD.
    ///
    /// Errors: it is of another platform.
    pub fn into_td(self) -> Result<Evidence, EnvelopeError> {
        match self {
            Self::Td(evidence) => Ok(evidence),
            Self::SevSnp(_) => Err(EnvelopeError::NotImplemented { platform: "sev-snp".to_owned() }),
        }
    }

    /// The same evidence with another `vm_config`: see [`Evidence::with_vm_config`].
    #[must_use]
    pub fn with_vm_config(self, vm_config: impl Into<String>) -> Self {
        match self {
            Self::Td(evidence) => Self::Td(evidence.with_vm_config(vm_config)),
            Self::SevSnp(evidence) => Self::SevSnp(SnpEvidence { vm_config: vm_config.into(), ..evidence }),
        }
    }
}

impl From<Evidence> for GuestEvidence {
    fn from(evidence: Evidence) -> Self {
        Self::Td(evidence)
    }
}

fn hex_field(field: &'static str, text: &str) -> Result<Vec<u8>, EvidenceError> {
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| EvidenceError::Field { field })
}

fn padded_report_data(bytes: &[u8]) -> Result<ReportData, EvidenceError> {
    let mut data = [0; 64];
    data.get_mut(..bytes.len()).ok_or(EvidenceError::Field { field: "report_data" })?.copy_from_slice(bytes);
    Ok(data)
}

/// The log comes as JSON text inside a string, or as the array itself. It is not held as a tree of JSON values, which would be many times larger.
fn parse_log(value: Option<&RawValue>) -> Result<Vec<Event>, EvidenceError> {
    const MALFORMED: EvidenceError = EvidenceError::Field { field: "event_log" };
    let Some(value) = value.map(RawValue::get) else { return Ok(Vec::new()) };
    let text = match value.strip_prefix('"') {
        Some(_) => Cow::Owned(serde_json::from_str(value).map_err(|_| MALFORMED)?),
        None => Cow::Borrowed(value),
    };
    if text.is_empty() { Ok(Vec::new()) } else { parse_events(&text).map_err(|_| MALFORMED) }
}
