//! The policy webhook: a KMS asks an HTTP service whether a boot may have keys.
//!
//! `POST {url}/bootAuth/app` and `POST {url}/bootAuth/kms` with [`PolicyBootInfo`] → [`PolicyAnswer`]; `GET {url}/` →
//! [`PolicyServerInfo`]. Names, case and hex without `0x` are those of deployed servers and clients.

use serde::{Deserialize, Serialize};

/// Path of the question about an app, below the service's address.
pub const BOOT_AUTH_APP: &str = "/bootAuth/app";
/// Path of the question about a KMS.
pub const BOOT_AUTH_KMS: &str = "/bootAuth/kms";

/// What a KMS proved about a boot. Digests are lower-case hex; empty where the evidence says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyBootInfo {
    /// Kind of TEE, such as `dstack-tdx`.
    pub tee_variant: String,
    /// Digest over all registers, 32 bytes.
    pub mr_aggregated: String,
    /// OS image whose measurement the registers agree with, 32 bytes.
    pub os_image_hash: String,
    /// Digest over the registers of firmware, OS and key provider, 32 bytes.
    pub mr_system: String,
    /// Application, 20 bytes.
    pub app_id: String,
    /// Document of the application, 32 bytes.
    pub compose_hash: String,
    /// Instance, 20 bytes or nothing.
    pub instance_id: String,
    /// Digest of the hardware's identity, 32 bytes.
    pub device_id: String,
    /// The key provider event's payload.
    pub key_provider_info: String,
    /// Vendor's word for the platform's patch level.
    pub tcb_status: String,
    /// Advisories that apply to the platform.
    pub advisory_ids: Vec<String>,
    /// The evidence is of a software TEE. Sent only when it is: other servers do not know the field.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Seconds since the KMS gave out the nonce that the evidence carries. Sent only when there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence_age_seconds: Option<u64>,
}

/// The decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAnswer {
    /// Whether the boot may have keys.
    pub is_allowed: bool,
    /// The app that is the gateway for all apps; empty if there is none.
    #[serde(default)]
    pub gateway_app_id: Option<String>,
    /// Why not, for the operator.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What a policy service says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyServerInfo {
    /// `ok`.
    pub status: String,
    /// Contract that decides; empty if none does.
    pub kms_contract_addr: String,
    /// The app that is the gateway; empty if there is none.
    pub gateway_app_id: String,
    /// Chain of the contract; 0 if there is none.
    pub chain_id: u64,
    /// Implementation behind apps' contracts; empty if there is none.
    pub app_implementation: String,
    /// The same under its older name.
    pub app_auth_implementation: String,
}
