//! Application facts inside a certificate.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What the authority that signed a certificate had verified about its holder. MessagePack array, in this order; bytes as `bin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// 20 bytes.
    pub app_id: ByteBuf,
    /// 32 bytes.
    pub compose_hash: ByteBuf,
    /// 20 bytes or none.
    pub instance_id: ByteBuf,
    /// 32 bytes.
    pub device_id: ByteBuf,
    /// 32 bytes.
    pub mr_system: ByteBuf,
    /// 32 bytes.
    pub mr_aggregated: ByteBuf,
    /// 32 bytes or none.
    pub os_image_hash: ByteBuf,
    /// Measured key provider payload.
    pub key_provider_info: ByteBuf,
    /// One per init script.
    #[serde(default)]
    pub init_script_hashes: Option<Vec<ByteBuf>>,
}

impl AppInfo {
    /// The payload of the extension.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing to memory cannot fail, and every field has a MessagePack form.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// Reads a payload; `None` if it is malformed.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}
