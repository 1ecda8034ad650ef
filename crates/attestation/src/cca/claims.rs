//! The claims of platform and realm. Claims that are not listed here are ignored.

use std::fmt;

use ciborium::Value;

use crate::{
    CborError,
    cbor::{self, Map, bytes_of, text_of},
};

const LONGEST_TEXT: usize = 256;
const MAX_COMPONENTS: usize = 64;
/// Lengths of the hash functions that measurements may use.
const HASH_LENGTHS: [usize; 3] = [32, 48, 64];

/// State of a chip's life. Only a secured chip keeps its keys from debuggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifecycle(pub u16);

impl Lifecycle {
    /// Whether nobody can look into platform and realms.
    #[must_use]
    pub const fn is_secured(self) -> bool {
        self.0 >> 8 == 0x30
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 >> 8 {
            0x00 => "unknown",
            0x10 => "assembly and test",
            0x20 => "provisioning of the root of trust",
            0x30 => "secured",
            0x40 => "debug of other parts than the platform",
            0x50 => "recoverable debug of the platform",
            0x60 => "decommissioned",
            _ => return write!(f, "undefined state {:#06x}", self.0),
        })
    }
}

/// A measured part of the platform's firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftwareComponent {
    /// Its role, where it is told.
    pub role: Option<String>,
    /// Digest of its code.
    pub measurement: Vec<u8>,
    /// Its version, where it is told.
    pub version: Option<String>,
    /// Digest of its signer's key.
    pub signer_id: Vec<u8>,
}

/// What the chip says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformClaims {
    /// Name of the set of claims.
    pub profile: String,
    /// Hash of the realm's public key.
    pub challenge: Vec<u8>,
    /// The chip's model.
    pub implementation_id: Vec<u8>,
    /// The chip: `01`, then 32 bytes.
    pub instance_id: Vec<u8>,
    /// Vendor's configuration.
    pub configuration: Vec<u8>,
    /// State of its life.
    pub lifecycle: Lifecycle,
    /// Its firmware.
    pub components: Vec<SoftwareComponent>,
    /// Hash function of the measurements.
    pub hash_algorithm: String,
    /// Where the vendor says its tokens can be verified.
    pub verification_service: Option<String>,
}

/// What the realm management monitor says about the realm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealmClaims {
    /// Name of the set of claims; tokens before 2024 have none.
    pub profile: Option<String>,
    /// 64 bytes, what the requester put in.
    pub challenge: Vec<u8>,
    /// 64 bytes, chosen when the realm was created.
    pub personalization: Vec<u8>,
    /// Measurement of the realm as it was created.
    pub initial_measurement: Vec<u8>,
    /// Four registers that the realm extends.
    pub extensible_measurements: Vec<Vec<u8>>,
    /// Hash function of the measurements.
    pub hash_algorithm: String,
    /// The realm's public key, as the platform's challenge covers it.
    pub public_key: Vec<u8>,
    /// Hash function that the platform's challenge is made with.
    pub public_key_hash_algorithm: String,
}

impl PlatformClaims {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, CborError> {
        let mut map = Map::new(cbor::parse(payload)?)?;
        let text = "text of 1 to 256 bytes";
        Ok(Self {
            profile: map.need(265, "platform profile", text, text_of(LONGEST_TEXT))?,
            challenge: map.need(10, "platform challenge", "32, 48 or 64 bytes", digest)?,
            implementation_id: map.need(2396, "implementation id", "32 bytes", bytes_of(32..=32))?,
            instance_id: map.need(256, "instance id", "01 and 32 bytes", instance_id)?,
            configuration: map.need(2401, "platform configuration", "at most 4096 bytes", bytes_of(0..=4096))?,
            lifecycle: map.need(2395, "security lifecycle", "a number of 16 bits", lifecycle)?,
            components: map.need(2399, "software components", "1 to 64 components", components)?,
            hash_algorithm: map.need(2402, "platform hash algorithm", text, text_of(LONGEST_TEXT))?,
            verification_service: map.take(2400, "verification service", text, text_of(LONGEST_TEXT))?,
        })
    }
}

impl RealmClaims {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, CborError> {
        let mut map = Map::new(cbor::parse(payload)?)?;
        let text = "text of 1 to 256 bytes";
        Ok(Self {
            profile: map.take(265, "realm profile", text, text_of(LONGEST_TEXT))?,
            challenge: map.need(10, "realm challenge", "64 bytes", bytes_of(64..=64))?,
            personalization: map.need(44235, "personalization value", "64 bytes", bytes_of(64..=64))?,
            initial_measurement: map.need(44238, "initial measurement", "32, 48 or 64 bytes", digest)?,
            extensible_measurements: map.need(44239, "extensible measurements", "4 digests", extensible)?,
            hash_algorithm: map.need(44236, "realm hash algorithm", text, text_of(LONGEST_TEXT))?,
            public_key: map.need(44237, "realm public key", "1 to 256 bytes", bytes_of(1..=256))?,
            public_key_hash_algorithm: map.need(44240, "hash algorithm of the realm's key", text, text_of(LONGEST_TEXT))?,
        })
    }
}

fn digest(value: Value) -> Option<Vec<u8>> {
    value.into_bytes().ok().filter(|bytes| HASH_LENGTHS.contains(&bytes.len()))
}

fn instance_id(value: Value) -> Option<Vec<u8>> {
    value.into_bytes().ok().filter(|bytes| bytes.len() == 33 && bytes.first() == Some(&1))
}

fn lifecycle(value: Value) -> Option<Lifecycle> {
    cbor::unsigned(value).and_then(|state| u16::try_from(state).ok()).map(Lifecycle)
}

fn extensible(value: Value) -> Option<Vec<Vec<u8>>> {
    let registers: Vec<Vec<u8>> = value.into_array().ok()?.into_iter().map(digest).collect::<Option<_>>()?;
    (registers.len() == 4).then_some(registers)
}

fn components(value: Value) -> Option<Vec<SoftwareComponent>> {
    let list = value.into_array().ok().filter(|list| (1..=MAX_COMPONENTS).contains(&list.len()))?;
    list.into_iter().map(|component| parse_component(component).ok()).collect()
}

fn parse_component(value: Value) -> Result<SoftwareComponent, CborError> {
    let mut map = Map::new(value)?;
    let text = "text of 1 to 256 bytes";
    Ok(SoftwareComponent {
        role: map.take(1, "component type", text, text_of(LONGEST_TEXT))?,
        measurement: map.need(2, "measurement", "32, 48 or 64 bytes", digest)?,
        version: map.take(4, "component version", text, text_of(LONGEST_TEXT))?,
        signer_id: map.need(5, "signer id", "32, 48 or 64 bytes", digest)?,
    })
}
