//! Events that the guest itself measures into RTMR3.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct as _};
use sha2::{Digest as _, Sha384};

use crate::{
    BankDigest, Digest384, HashAlgorithm,
    event::{Event, EventVersion},
};

/// Event type of runtime events.
pub const RUNTIME_EVENT_TYPE: u32 = 0x0800_0001;
/// The register they extend.
pub const RUNTIME_REGISTER: u32 = 3;

/// Names of the events that a booting guest measures, in their order.
pub mod names {
    /// First event; empty payload.
    pub const SYSTEM_PREPARING: &str = "system-preparing";
    /// 20 bytes.
    pub const APP_ID: &str = "app-id";
    /// 32 bytes.
    pub const COMPOSE_HASH: &str = "compose-hash";
    /// SHA-256 of an init script, once per script.
    pub const INIT_SCRIPT_HASH: &str = "init-script-hash";
    /// SHA-256 of the canonical GPU policy, `{}` if there is none.
    pub const GPU_POLICY_HASH: &str = "gpu-policy-hash";
    /// Evidence of the GPUs, where there are some.
    pub const GPU_ATTESTATION: &str = "gpu-attestation";
    /// 20 bytes, or empty.
    pub const INSTANCE_ID: &str = "instance-id";
    /// End of the boot-time measurement; empty payload.
    pub const BOOT_MR_DONE: &str = "boot-mr-done";
    /// 32 bytes, once keys came from a KMS.
    pub const OS_IMAGE_HASH: &str = "os-image-hash";
    /// JSON `{"name","id"}`.
    pub const KEY_PROVIDER: &str = "key-provider";
    /// `ext4` or `zfs`.
    pub const STORAGE_FS: &str = "storage-fs";
    /// End of boot; identity events after it do not count.
    pub const SYSTEM_READY: &str = "system-ready";
}

/// A runtime event: what was measured, and how its digest is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// Name.
    pub event: String,
    /// Measured bytes.
    pub payload: Vec<u8>,
    /// Digest rule.
    pub version: EventVersion,
}

impl RuntimeEvent {
    /// An event to measure.
    #[must_use]
    pub fn new(event: impl Into<String>, payload: impl Into<Vec<u8>>, version: EventVersion) -> Self {
        Self { event: event.into(), payload: payload.into(), version }
    }

    /// The bytes that are hashed.
    ///
    /// V1: `01000008 ":" name ":" payload`. A name with a colon is ambiguous there, which V2 repairs: canonical JSON (RFC 8785).
    #[must_use]
    pub fn preimage(&self) -> Vec<u8> {
        match self.version {
            EventVersion::V1 => {
                let mut bytes = RUNTIME_EVENT_TYPE.to_le_bytes().to_vec();
                bytes.push(b':');
                bytes.extend_from_slice(self.event.as_bytes());
                bytes.push(b':');
                bytes.extend_from_slice(&self.payload);
                bytes
            }
            EventVersion::V2 => canonical_json(&self.event, &self.payload),
        }
    }

    /// What RTMR3 is extended with.
    #[must_use]
    pub fn digest(&self) -> Digest384 {
        runtime_digest(self.version, &self.event, &self.payload)
    }

    /// What a PCR of another bank is extended with: the same bytes, hashed by the bank's algorithm.
    #[must_use]
    pub fn digest_for(&self, algorithm: HashAlgorithm) -> BankDigest {
        algorithm.digest(&[&self.preimage()])
    }

    /// The log entry with its digest.
    #[must_use]
    pub fn to_event(&self) -> Event {
        Event {
            imr: RUNTIME_REGISTER,
            event_type: RUNTIME_EVENT_TYPE,
            digest: self.digest().to_vec(),
            event: self.event.clone(),
            event_payload: self.payload.clone(),
            version: self.version,
        }
    }
}

/// [`RuntimeEvent::digest`] of borrowed parts.
pub(crate) fn runtime_digest(version: EventVersion, name: &str, payload: &[u8]) -> Digest384 {
    let hasher = match version {
        EventVersion::V1 => Sha384::new_with_prefix(RUNTIME_EVENT_TYPE.to_le_bytes())
            .chain_update(b":")
            .chain_update(name)
            .chain_update(b":")
            .chain_update(payload),
        EventVersion::V2 => Sha384::new_with_prefix(canonical_json(name, payload)),
    };
    hasher.finalize().into()
}

/// RFC 8785 form of `{"name","payload","type"}`: keys are in order, strings escape as serde_json does, the number is an integer.
fn canonical_json(name: &str, payload: &[u8]) -> Vec<u8> {
    let name = serde_json::Value::from(name);
    format!("{{\"name\":{name},\"payload\":\"{}\",\"type\":{RUNTIME_EVENT_TYPE}}}", hex::encode(payload)).into_bytes()
}

/// One line of the guest's runtime log: `{"event","payload"(base64),"version"?}`.
#[derive(Deserialize)]
struct WireRuntimeEvent {
    event: String,
    payload: String,
    #[serde(default)]
    version: Option<u32>,
}

impl<'de> Deserialize<'de> for RuntimeEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = WireRuntimeEvent::deserialize(deserializer)?;
        let payload = STANDARD.decode(&wire.payload).map_err(serde::de::Error::custom)?;
        let version = EventVersion::from_number(wire.version.unwrap_or(1))
            .ok_or_else(|| serde::de::Error::custom("runtime event of a version other than 1 and 2"))?;
        Ok(Self { event: wire.event, payload, version })
    }
}

impl Serialize for RuntimeEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let v2 = self.version == EventVersion::V2;
        let mut out = serializer.serialize_struct("RuntimeEvent", if v2 { 3 } else { 2 })?;
        out.serialize_field("event", &self.event)?;
        out.serialize_field("payload", &STANDARD.encode(&self.payload))?;
        if v2 {
            out.serialize_field("version", &self.version.number())?;
        }
        out.end()
    }
}
