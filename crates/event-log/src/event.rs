//! One log entry and its JSON form.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct as _};

use crate::{
    Digest384, EventLogError,
    runtime::{RUNTIME_EVENT_TYPE, RUNTIME_REGISTER, RuntimeEvent, runtime_digest},
};

/// How a runtime event's digest is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EventVersion {
    /// `SHA-384(type as u32 LE || ":" || name || ":" || payload)`.
    #[default]
    V1,
    /// `SHA-384` of canonical JSON with name, payload and type.
    V2,
}

impl EventVersion {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }
}

/// One entry of a log, as it came: unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Register it extends, 0 to 3.
    pub imr: u32,
    /// TCG event type, or [`RUNTIME_EVENT_TYPE`].
    pub event_type: u32,
    /// 48 bytes; empty where a stripped log leaves a runtime event's digest out.
    pub digest: Vec<u8>,
    /// Name; for boot events often empty.
    pub event: String,
    /// Payload of a runtime event; of boot events whatever the log's writer kept.
    pub event_payload: Vec<u8>,
    /// Of runtime events.
    pub version: EventVersion,
}

impl Event {
    /// A boot event of which only the digest matters.
    #[must_use]
    pub fn boot(imr: u32, event_type: u32, digest: &Digest384, event: impl Into<String>) -> Self {
        Self { imr, event_type, digest: digest.to_vec(), event: event.into(), event_payload: Vec::new(), version: EventVersion::V1 }
    }

    /// This entry as a runtime event: type `0x08000001` in register 3, nothing else.
    #[must_use]
    pub fn as_runtime(&self) -> Option<RuntimeEvent> {
        self.is_runtime().then(|| RuntimeEvent::new(self.event.clone(), self.event_payload.clone(), self.version))
    }

    /// Whether this is a runtime event, see [`Event::as_runtime`].
    #[must_use]
    pub const fn is_runtime(&self) -> bool {
        self.event_type == RUNTIME_EVENT_TYPE && self.imr == RUNTIME_REGISTER
    }

    /// The digest that is extended. `index`: position in the log, for the error.
    ///
    /// Runtime events: recomputed; a digest that is present must be equal. Others: the 48 bytes of the log.
    pub fn checked_digest(&self, index: usize) -> Result<Digest384, EventLogError> {
        if !self.is_runtime() {
            return Digest384::try_from(self.digest.as_slice()).map_err(|_| EventLogError::DigestLength { index, got: self.digest.len() });
        }
        let digest = runtime_digest(self.version, &self.event, &self.event_payload);
        if self.digest.is_empty() || self.digest == digest {
            Ok(digest)
        } else {
            Err(EventLogError::PayloadMismatch { index, name: self.event.clone() })
        }
    }

    /// The form in which an envelope carries it: runtime events without digest, others without payload unless it names an ACPI table.
    #[must_use]
    pub fn stripped(&self) -> Self {
        let mut event = self.clone();
        if event.is_runtime() {
            event.digest.clear();
        } else if event.event_payload != b"ACPI DATA" {
            event.event_payload.clear();
        }
        event
    }
}

#[derive(Deserialize)]
struct WireEvent {
    imr: u32,
    event_type: u32,
    #[serde(default, with = "hex::serde")]
    digest: Vec<u8>,
    #[serde(default)]
    event: String,
    #[serde(default, with = "hex::serde")]
    event_payload: Vec<u8>,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    preimage: Option<String>,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = WireEvent::deserialize(deserializer)?;
        let version = EventVersion::from_number(wire.version.unwrap_or(1))
            .ok_or_else(|| serde::de::Error::custom("runtime event of a version other than 1 and 2"))?;
        let event = Self {
            imr: wire.imr,
            event_type: wire.event_type,
            digest: wire.digest,
            event: wire.event,
            event_payload: wire.event_payload,
            version,
        };
        let computed = wire.preimage.as_ref().and_then(|_| event.as_runtime()).map(|runtime| hex::encode(runtime.preimage()));
        match (wire.preimage, computed) {
            (Some(given), Some(computed)) if !given.eq_ignore_ascii_case(&computed) => {
                Err(serde::de::Error::custom("preimage of a runtime event that is not the one of its name and payload"))
            }
            _ => Ok(event),
        }
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let preimage = self.as_runtime().filter(|_| self.version == EventVersion::V2).map(|event| event.preimage());
        let mut out = serializer.serialize_struct("Event", if preimage.is_some() { 7 } else { 5 })?;
        out.serialize_field("imr", &self.imr)?;
        out.serialize_field("event_type", &self.event_type)?;
        out.serialize_field("digest", &hex::encode(&self.digest))?;
        out.serialize_field("event", &self.event)?;
        out.serialize_field("event_payload", &hex::encode(&self.event_payload))?;
        if let Some(preimage) = preimage {
            out.serialize_field("version", &self.version.number())?;
            out.serialize_field("preimage", &hex::encode(preimage))?;
        }
        out.end()
    }
}
