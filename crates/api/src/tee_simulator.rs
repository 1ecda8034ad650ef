//! The software TEE's two interfaces: control (host side) and device (guest side). JSON over HTTP/1.1.
//!
//! Control, on a Unix socket of the host: `PUT /td/<vm_id>` ([`LaunchTd`]) → [`TdState`], `DELETE /td/<vm_id>`,
//! `GET /td/<vm_id>` → [`TdState`]. Device, one listener per TD (vsock port [`DEVICE_PORT`] seen from the guest):
//! `GET /td` → [`TdState`], `POST /extend` ([`Extend`]) → [`TdState`], `POST /quote` ([`QuoteRequest`]) → [`QuoteAnswer`],
//! `POST /sealing-key` ([`SealingKeyRequest`]) → [`SealingKeyAnswer`].
//! Errors are HTTP 400 with an [`RpcError`](crate::RpcError).

use serde::{Deserialize, Serialize};

/// Port a guest finds its device on; the same that a TDX quote request uses (QGS).
pub const DEVICE_PORT: u32 = 4050;

/// Starts a TD: its registers are computed from the files that are about to be booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchTd {
    /// Directory of the OS image (firmware, kernel, initrd, metadata).
    pub image_dir: String,
    /// The `vm_config` document handed to the guest, as text.
    pub vm_config: String,
    /// 48 bytes, hex; MRCONFIGID of the TD.
    #[serde(with = "crate::json::hex_bytes")]
    pub mr_config_id: Vec<u8>,
    /// Where the guest's requests arrive: a Unix socket path to listen on, or empty for kernel vsock (`cid`).
    pub listen: String,
    /// The guest's CID.
    pub cid: u32,
}

/// Registers of a TD, 48 bytes each, hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TdState {
    /// Measurement of the TD's initial contents.
    #[serde(with = "crate::json::hex_bytes")]
    pub mrtd: Vec<u8>,
    /// RTMR0 to RTMR3.
    #[serde(with = "crate::json::hex_list")]
    pub rtmr: Vec<Vec<u8>>,
    /// MRCONFIGID.
    #[serde(with = "crate::json::hex_bytes")]
    pub mr_config_id: Vec<u8>,
    /// The boot event log of the registers 0 to 2 as JSON text: `[{"imr","event_type","digest","event","event_payload"}]`.
    pub boot_event_log: String,
}

/// Extends a register: `value = SHA-384(value || digest)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// Only 2 and 3 can be extended by the guest.
    pub index: u8,
    /// 48 bytes, hex.
    #[serde(with = "crate::json::hex_bytes")]
    pub digest: Vec<u8>,
}

/// Asks for a quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    /// 64 bytes, hex.
    #[serde(with = "crate::json::hex_bytes")]
    pub report_data: Vec<u8>,
}

/// Asks for a key that only a TD with the same launch registers and MRCONFIGID gets again from this software TEE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealingKeyRequest {
    /// What the key is for; another label gives another key.
    pub label: String,
}

/// The key. Worth what the software TEE's files are worth.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKeyAnswer {
    /// 32 bytes, hex.
    #[serde(with = "crate::json::hex_bytes")]
    pub key: Vec<u8>,
}

/// A TDX quote, version 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteAnswer {
    /// Raw quote, hex.
    #[serde(with = "crate::json::hex_bytes")]
    pub quote: Vec<u8>,
}
