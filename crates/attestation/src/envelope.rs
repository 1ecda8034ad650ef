//! The envelope in which evidence travels inside certificates and requests.
//!
//! First byte `0x00`: version 0, SCALE. A MessagePack map: version 1. This code reads both and writes version 1 (and 0 for old readers).
//! Layouts are in `SPEC.md`. How binary fields look in version 1 is not covered by a public vector; they are written as MessagePack
//! `bin` and read as `bin`, as an array of numbers, or as the text form of the JSON dialect.

use dstack_event_log::{Event, RuntimeEvent};

use crate::{ContentType, ReportData, envelope_msgpack, envelope_scale, report_data};

/// Largest envelope that is read.
pub const MAX_ENVELOPE_BYTES: usize = 10 << 20;

/// Why bytes are not an envelope this code can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Too long.
    #[error("attestation of {got} bytes exceeds the limit of {MAX_ENVELOPE_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// First byte of no known version.
    #[error("attestation starts with byte {first:?}, which is no known version")]
    UnknownVersion {
        /// The byte, if there is one.
        first: Option<u8>,
    },
    /// The version's structure is broken.
    #[error("attestation version {version} is malformed: {reason}")]
    Malformed {
        /// 0 or 1.
        version: u8,
        /// What the parser met.
        reason: String,
    },
    /// A platform or stack whose form is not read here.
    #[error("attestation of platform {platform} is not implemented here")]
    NotImplemented {
        /// Name on the wire.
        platform: String,
    },
    /// A pod's report data does not stand for the payload that came with it.
    #[error("report data of the attestation is not the app-data hash of its payload")]
    Payload,
    /// Version 0 has no place for version 2 events and for pods.
    #[error("attestation with {what} has no version 0 form")]
    NoVersion0Form {
        /// What it has no place for.
        what: &'static str,
    },
}

/// What the hardware of one platform gives. Unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformEvidence {
    /// Intel TDX.
    Tdx {
        /// Raw quote.
        quote: Vec<u8>,
        /// Boot and runtime events, often stripped.
        event_log: Vec<Event>,
    },
    /// Intel TDX on Google's cloud, where a TPM tells the boot.
    GcpTdx {
        /// Raw quote, padding included: the TPM quote is over its hash.
        quote: Vec<u8>,
        /// Boot and runtime events, often stripped.
        event_log: Vec<Event>,
        /// For [`TpmQuote::decode_scale`](crate::tpm::TpmQuote::decode_scale).
        tpm_quote: Vec<u8>,
    },
    /// AWS Nitro Enclave.
    NitroEnclave {
        /// COSE document of the security module.
        document: Vec<u8>,
    },
    /// AMD SEV-SNP.
    SevSnp {
        /// Raw report.
        report: Vec<u8>,
        /// Certificates of the key that signed, PEM or DER, in any order; often none.
        certificates: Vec<Vec<u8>>,
        /// The document that HOST_DATA stands for.
        mr_config: String,
    },
    /// AWS instance with NitroTPM.
    NitroTpm {
        /// COSE document of the TPM.
        document: Vec<u8>,
    },
}

impl PlatformEvidence {
    /// Name on the wire.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tdx { .. } => "tdx",
            Self::GcpTdx { .. } => "gcp-tdx",
            Self::NitroEnclave { .. } => "nitro-enclave",
            Self::SevSnp { .. } => "sev-snp",
            Self::NitroTpm { .. } => "aws-nitro-tpm",
        }
    }
}

/// Contents of an envelope of any platform. Unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the hardware gives.
    pub evidence: PlatformEvidence,
    /// Runtime events, in order.
    pub runtime_events: Vec<RuntimeEvent>,
    /// What the requester wanted under the signature.
    pub report_data: ReportData,
    /// The guest's `.sys-config.json`, of which `vm_config` is used.
    pub config: String,
    /// What the report data of a pod stands for: it is the app-data hash of this text. `None` outside pods.
    pub report_data_payload: Option<String>,
}

impl Envelope {
    /// Reads an envelope of either version; it must fill `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong { got: bytes.len() });
        }
        let envelope = match bytes.split_first() {
            Some((0, rest)) => envelope_scale::decode(rest),
            Some((0x80..=0x8f | 0xde | 0xdf, _)) => envelope_msgpack::decode(bytes),
            other => Err(EnvelopeError::UnknownVersion { first: other.map(|(first, _)| *first) }),
        }?;
        let payload = envelope.report_data_payload.as_ref();
        if payload.is_some_and(|payload| report_data(ContentType::AppData, payload.as_bytes()) != envelope.report_data) {
            return Err(EnvelopeError::Payload);
        }
        Ok(envelope)
    }

    /// Version 1, the current form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        envelope_msgpack::encode(self)
    }

    /// Version 0, for readers of 2025.
    pub fn encode_v0(&self) -> Result<Vec<u8>, EnvelopeError> {
        envelope_scale::encode(self)
    }

    /// The form that fits into a certificate: boot events reduced to those a verifier cannot compute, no runtime digests.
    #[must_use]
    pub fn stripped(mut self) -> Self {
        let runtime = |event: &&Event| event.imr == dstack_event_log::RUNTIME_REGISTER;
        let keep = |event: &&Event| runtime(event) || event.event_payload == b"ACPI DATA";
        match &mut self.evidence {
            PlatformEvidence::Tdx { event_log, .. } => *event_log = event_log.iter().filter(keep).map(Event::stripped).collect(),
            PlatformEvidence::GcpTdx { event_log, .. } => *event_log = event_log.iter().filter(runtime).map(Event::stripped).collect(),
            _ => {}
        }
        self
    }

    /// The `vm_config` text inside [`Envelope::config`]; empty if there is none. On SEV-SNP the configuration may be that text itself.
    #[must_use]
    pub fn vm_config(&self) -> String {
        match (vm_config(&self.config), &self.evidence) {
            (none, PlatformEvidence::SevSnp { .. }) if none.is_empty() => self.config.clone(),
            (text, _) => text,
        }
    }
}

/// Contents of an envelope of a TDX guest. Unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// Raw TDX quote.
    pub quote: Vec<u8>,
    /// The log, often stripped.
    pub event_log: Vec<Event>,
    /// Runtime events once more, in order.
    pub runtime_events: Vec<RuntimeEvent>,
    /// What the requester wanted in the quote.
    pub report_data: ReportData,
    /// The guest's `.sys-config.json`, of which `vm_config` is used.
    pub config: String,
}

impl Attestation {
    /// Reads an envelope of either version that holds evidence of a TD; it must fill `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::try_from(Envelope::decode(bytes)?)
    }

    /// Version 1, the current form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Envelope::from(self.clone()).encode()
    }

    /// Version 0, for readers of 2025.
    pub fn encode_v0(&self) -> Result<Vec<u8>, EnvelopeError> {
        Envelope::from(self.clone()).encode_v0()
    }

    /// The form that fits into a certificate: boot events reduced to those a verifier cannot compute, no runtime digests.
    #[must_use]
    pub fn stripped(&self) -> Self {
        let keep = |event: &&Event| event.imr == dstack_event_log::RUNTIME_REGISTER || event.event_payload == b"ACPI DATA";
        Self { event_log: self.event_log.iter().filter(keep).map(Event::stripped).collect(), ..self.clone() }
    }

    /// The `vm_config` text inside [`Attestation::config`]; empty if there is none.
    #[must_use]
    pub fn vm_config(&self) -> String {
        vm_config(&self.config)
    }
}

impl TryFrom<Envelope> for Attestation {
    type Error = EnvelopeError;

    fn try_from(envelope: Envelope) -> Result<Self, EnvelopeError> {
        let Envelope { evidence, runtime_events, report_data, config, .. } = envelope;
        match evidence {
            PlatformEvidence::Tdx { quote, event_log } => Ok(Self { quote, event_log, runtime_events, report_data, config }),
            other => Err(EnvelopeError::NotImplemented { platform: other.kind().to_owned() }),
        }
    }
}

impl From<Attestation> for Envelope {
    fn from(attestation: Attestation) -> Self {
        let Attestation { quote, event_log, runtime_events, report_data, config } = attestation;
        Self { evidence: PlatformEvidence::Tdx { quote, event_log }, runtime_events, report_data, config, report_data_payload: None }
    }
}

fn vm_config(config: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(default)]
        vm_config: String,
    }
    serde_json::from_str::<Config>(config).map(|config| config.vm_config).unwrap_or_default()
}
