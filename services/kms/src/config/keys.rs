//! Tables about this machine's keys: where they are sealed, how a first start gets them, who administers them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::sealing::PcrBank;

/// The `[tee]` table: this machine's own evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeeConfig {
    /// `.sys-config.json` of this VM, so that peers can tell its OS image; without it no peer accepts this KMS as a replica.
    #[serde(default)]
    pub sys_config: Option<PathBuf>,
    /// Directory of the runtime event log.
    #[serde(default = "default_runtime_log")]
    pub runtime_log: PathBuf,
}

impl Default for TeeConfig {
    fn default() -> Self {
        Self { sys_config: None, runtime_log: default_runtime_log() }
    }
}

fn default_runtime_log() -> PathBuf {
    "/run/log/dstack".into()
}

/// Where the key comes from that encrypts the keys at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealingProvider {
    /// Nowhere: the files lie as they are, and the disk is what protects them.
    None,
    /// The software TEE of a test system.
    SoftwareTee,
    /// A sealing enclave on the same host.
    LocalKeyProvider,
    /// A TPM of the platform.
    Tpm,
}

/// The `[sealing]` table: keys at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealing {
    /// Where the key comes from. Default: `local-key-provider`, and `none` with `run_without_tee`.
    #[serde(default)]
    pub provider: Option<SealingProvider>,
    /// Address of the local key provider.
    #[serde(default = "default_key_provider")]
    pub local_key_provider: String,
    /// MRENCLAVE of the local key provider, hex.
    #[serde(default)]
    pub mr_enclave: Option<String>,
    /// Intel's collateral for the local key provider's quote, JSON with the fields of QuoteCollateralV3.
    #[serde(default)]
    pub collateral_file: Option<PathBuf>,
    /// Device of the TPM.
    #[serde(default = "default_tpm_device")]
    pub tpm_device: PathBuf,
    /// Which digests of the TPM's registers count.
    #[serde(default)]
    pub tpm_bank: PcrBank,
    /// Registers that must be the same at each start: default is what firmware, boot loader, kernel and guest measure.
    #[serde(default = "default_tpm_pcrs")]
    pub tpm_pcrs: Vec<u8>,
    /// File of the key that the TPM sealed; default is `cert_dir` with `-tpm-key` behind its name.
    #[serde(default)]
    pub tpm_key_file: Option<PathBuf>,
}

impl Default for Sealing {
    fn default() -> Self {
        Self {
            provider: None,
            local_key_provider: default_key_provider(),
            mr_enclave: None,
            collateral_file: None,
            tpm_device: default_tpm_device(),
            tpm_bank: PcrBank::default(),
            tpm_pcrs: default_tpm_pcrs(),
            tpm_key_file: None,
        }
    }
}

fn default_tpm_device() -> PathBuf {
    "/dev/tpmrm0".into()
}

/// Firmware 0 and 2, boot loader and kernel 4, Secure Boot 7, configuration 8, kernel command line 12, events of the guest 14.
fn default_tpm_pcrs() -> Vec<u8> {
    vec![0, 2, 4, 7, 8, 12, 14]
}

fn default_key_provider() -> String {
    "127.0.0.1:3443".to_owned()
}

/// What a start without keys does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstStart {
    /// Makes new root keys.
    #[default]
    Bootstrap,
    /// Serves the onboarding page until somebody decides.
    Wait,
    /// Ends.
    Refuse,
}

/// The `[onboard]` table: a start without keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Onboard {
    /// What a start without keys does: "bootstrap", "wait" or "refuse".
    #[serde(default)]
    pub first_start: FirstStart,
    /// Where the onboarding page is served over plain HTTP.
    #[serde(default = "default_onboard_listen")]
    pub listen: SocketAddr,
    /// File whose first line is the token that the onboarding calls need; without it everybody who reaches the address decides.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Shown to those who onboard.
    #[serde(default)]
    pub site_name: String,
}

impl Default for Onboard {
    fn default() -> Self {
        Self { first_start: FirstStart::default(), listen: default_onboard_listen(), token_file: None, site_name: String::new() }
    }
}

fn default_onboard_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 8000))
}

/// The `[admin]` table: epochs, recovery, caches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Where the admin calls are served over plain HTTP; absent for nowhere.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// File whose first line is the token that the admin calls need.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Users who may call with their passwords, as `htpasswd -B` writes them.
    #[serde(default)]
    pub htpasswd_file: Option<PathBuf>,
}
