//! The envelope in which evidence travels inside certificates and requests.
//!
//! First byte `0x00`: version 0, SCALE. A MessagePack map: version 1. This code reads both and writes version 1 (and 0 for old readers).
//! Layouts are in `SPEC.md`. How binary fields look in version 1 is not covered by a public vector; they are written as MessagePack
//! `bin` and read as `bin`, as an array of numbers, or as the text form of the JSON dialect.

use dstack_event_log::{Event, RuntimeEvent};

use crate::{ReportData, envelope_msgpack, envelope_scale};

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
    /// A platform this release cannot verify.
    #[error("attestation of platform {platform} is not implemented; this release verifies tdx")]
    NotImplemented {
        /// Name on the wire.
        platform: String,
    },
    /// Version 0 has no place for version 2 events.
    #[error("attestation with version 2 runtime events has no version 0 form")]
    NoVersion0Form,
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
    /// Reads an envelope of either version; it must fill `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong { got: bytes.len() });
        }
        match bytes.split_first() {
            Some((0, rest)) => envelope_scale::decode(rest),
            Some((0x80..=0x8f | 0xde | 0xdf, _)) => envelope_msgpack::decode(bytes),
            other => Err(EnvelopeError::UnknownVersion { first: other.map(|(first, _)| *first) }),
        }
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
    pub fn stripped(&self) -> Self {
        let keep = |event: &&Event| event.imr == dstack_event_log::RUNTIME_REGISTER || event.event_payload == b"ACPI DATA";
        Self { event_log: self.event_log.iter().filter(keep).map(Event::stripped).collect(), ..self.clone() }
    }

    /// The `vm_config` text inside [`Attestation::config`]; empty if there is none.
    #[must_use]
    pub fn vm_config(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Config {
            #[serde(default)]
            vm_config: String,
        }
        serde_json::from_str::<Config>(&self.config).map(|config| config.vm_config).unwrap_or_default()
    }
}
