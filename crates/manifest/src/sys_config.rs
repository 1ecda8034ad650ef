//! What the host tells a guest about its surroundings, and what names an instance.

use serde::{Deserialize, Serialize};

use crate::{AppId, InstanceId, VmConfig};

/// Addresses of collateral sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollateralUrls {
    /// Intel PCS or a cache of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pccs: Option<String>,
    /// AMD KDS or a cache of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amd_kds: Option<String>,
}

/// `.sys-config.json`. Untrusted: a host can only deny service or misroute with it. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SysConfig {
    /// KMS addresses in the order to try.
    pub kms_urls: Vec<String>,
    /// Gateway addresses in the order to try.
    #[serde(alias = "tproxy_urls")]
    pub gateway_urls: Vec<String>,
    /// Collateral source in documents of older hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pccs_url: Option<String>,
    /// Collateral sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collateral_urls: Option<CollateralUrls>,
    /// Registry mirror for the container engine; empty means none.
    #[serde(deserialize_with = "null_is_empty")]
    pub docker_registry: String,
    /// Where the host API answers, normally `vsock://2:10000/api`.
    pub host_api_url: String,
    /// A [`VmConfig`] as JSON text.
    pub vm_config: String,
    /// The version 3 MRCONFIGID document as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mr_config: Option<String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl SysConfig {
    /// Parses the embedded VM configuration.
    ///
    /// Errors: text that is not a VM configuration.
    pub fn parse_vm_config(&self) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(&self.vm_config)
    }
}

/// `.instance_info`: the host writes the app id; the guest adds the rest and reports the document back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// 20 bytes of hex, chosen by the guest at its first boot; not secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id_seed: Option<String>,
    /// The instance id, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The app id, where one was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
}

impl InstanceInfo {
    /// The seed as bytes, if there is one.
    ///
    /// Errors: text that is not 20 bytes of hex.
    pub fn seed(&self) -> Result<Option<[u8; 20]>, crate::HexError> {
        match self.instance_id_seed.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => {
                text.parse::<AppId>().map(|id| Some(*id.as_bytes())).map_err(|e| crate::HexError { what: "instance id seed", ..e })
            }
        }
    }
}
