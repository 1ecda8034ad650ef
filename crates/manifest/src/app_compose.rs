//! `app-compose.json`: the document an application is. Its bytes are hashed as they are.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComposeHash, Digest32, host_share};

/// Largest document a guest accepts.
pub const MAX_APP_COMPOSE_BYTES: u64 = host_share::APP_COMPOSE.max_bytes;
/// Highest manifest version this code understands; higher ones are refused so that new features fail closed.
const MAX_MANIFEST_VERSION: u64 = 3;
/// The first that may make demands.
const REQUIREMENTS_VERSION: u64 = 3;
const MAX_INIT_SCRIPTS: usize = 5;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppComposeError {
    /// Larger than [`MAX_APP_COMPOSE_BYTES`].
    #[error("app-compose.json has {got} bytes, at most {MAX_APP_COMPOSE_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        got: usize,
    },
    /// Not JSON, or a field of the wrong type.
    #[error("app-compose.json at line {line} column {column}: {reason}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// A rule between fields is broken.
    #[error("app-compose.json field {field}: {reason}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What runs the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runner {
    /// `docker compose` over [`AppComposeDocument::docker_compose_file`].
    DockerCompose,
    /// `nerdctl compose`; needs manifest version 3.
    NerdctlCompose,
    /// A shell script.
    Bash,
}

/// Where the application's keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyProviderKind {
    /// Random at each boot.
    None,
    /// A sealing enclave on the same host.
    Local,
    /// The key management service.
    Kms,
    /// A TPM of the platform.
    Tpm,
}

impl KeyProviderKind {
    /// Byte of the version 2 MRCONFIGID.
    pub(crate) fn mr_config_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Local => 1,
            Self::Kms => 2,
            Self::Tpm => 3,
        }
    }
}

impl fmt::Display for KeyProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Kms => "kms",
            Self::Tpm => "tpm",
        })
    }
}

/// By which derivations a KMS makes an app's keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyScheme {
    /// As every KMS and client knows them; the same for ever.
    #[default]
    Compatible,
    /// Labels that name algorithm, purpose, version and epoch; each instance has its own keys.
    Separated,
}

impl KeyScheme {
    /// As a KMS is asked for it: nothing for what every KMS does.
    #[must_use]
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Compatible => "",
            Self::Separated => "separated",
        }
    }
}

/// File system of the data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageFs {
    /// ZFS.
    Zfs,
    /// ext4.
    Ext4,
}

/// A read-only volume with a measured dm-verity root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerityVolume {
    /// Bare file name in the host's volume directory.
    pub source: String,
    /// dm-verity root hash.
    pub verity_root: Digest32,
    /// Absolute mount point in the guest.
    pub target: String,
}

/// A container image carried by one of the volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadedImage {
    /// Name the compose file uses.
    pub reference: String,
    /// `sha256:<hex>` of the image's manifest.
    pub digest: String,
    /// Index into `verity_volumes`.
    pub volume: usize,
}

/// What the application demands of its surroundings. Unknown demands are refused, since ignoring one would weaken it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirements {
    /// Semantic version requirement on the OS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Platforms the app accepts; present and empty means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platforms: Option<Vec<String>>,
    /// Whether ACPI tables must be measured by recomputation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdx_measure_acpi_tables: Option<bool>,
    /// Hash of the launch token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_token_hash: Option<String>,
    /// Demands on GPUs; any value is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_policy: Option<serde_json::Value>,
    /// Derivations of the keys. A demand, so that a guest which does not know it refuses instead of taking other keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_scheme: Option<KeyScheme>,
}

/// The manifest version: 1 or 2 as a number, or canonical decimal text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ManifestVersion(u64);

impl<'de> Deserialize<'de> for ManifestVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let version = match &value {
            serde_json::Value::Number(number) => number.as_u64().filter(|version| (1..=2).contains(version)),
            serde_json::Value::String(text) => text.parse().ok().filter(|version: &u64| *version > 0 && version.to_string() == *text),
            _ => None,
        };
        version.map(Self).ok_or_else(|| serde::de::Error::custom("manifest_version must be 1, 2 or canonical decimal text"))
    }
}

impl Serialize for ManifestVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 <= 2 { serializer.serialize_u64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

/// One script or a list of scripts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scripts(Vec<String>);

impl<'de> Deserialize<'de> for Scripts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Ok(Self::default()),
            serde_json::Value::String(text) => Ok(Self(vec![text])),
            list @ serde_json::Value::Array(_) => serde_json::from_value(list).map(Self).map_err(serde::de::Error::custom),
            _ => Err(serde::de::Error::custom("init_script must be text or a list of texts")),
        }
    }
}

impl Serialize for Scripts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            list => list.serialize(serializer),
        }
    }
}

/// Fields of the document. Unknown ones are ignored here and still hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppComposeDocument {
    manifest_version: ManifestVersion,
    /// Display name.
    pub name: String,
    /// What runs the application.
    pub runner: Runner,
    /// The compose file, YAML text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_compose_file: Option<String>,
    /// Runs before the container engine starts; at most 5.
    #[serde(default, skip_serializing_if = "scripts_are_empty")]
    init_script: Scripts,
    /// Sourced before the containers start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_launch_script: Option<String>,
    /// Older selector of the KMS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kms_enabled: bool,
    /// Older selector of the local provider.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_key_provider_enabled: bool,
    /// Where keys come from; wins over the two older selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_provider: Option<KeyProviderKind>,
    /// Pins the provider: for a KMS the hex SPKI DER of its CA.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_provider_id: String,
    /// Register with the gateway.
    #[serde(default, alias = "tproxy_enabled", skip_serializing_if = "std::ops::Not::not")]
    pub gateway_enabled: bool,
    /// Container logs are public.
    #[serde(default)]
    pub public_logs: bool,
    /// System information is public.
    #[serde(default)]
    pub public_sysinfo: bool,
    /// Measurements are public.
    #[serde(default = "yes")]
    pub public_tcbinfo: bool,
    /// Names accepted from the sealed environment.
    #[serde(default)]
    pub allowed_envs: Vec<String>,
    /// Instances share their disk key.
    #[serde(default)]
    pub no_instance_id: bool,
    /// Wait for authenticated time before asking for keys.
    #[serde(default = "yes")]
    pub secure_time: bool,
    /// File system of the data disk; absent means the OS's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_fs: Option<StorageFs>,
    /// Digest form of runtime events, 1 or 2.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub event_log_version: u32,
    /// Read-only volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verity_volumes: Vec<VerityVolume>,
    /// Container images that the volumes carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preloaded_images: Vec<PreloadedImage>,
    /// Demands; need manifest version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirements: Option<Requirements>,
}

fn yes() -> bool {
    true
}

fn first() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_first(version: &u32) -> bool {
    *version == 1
}

fn scripts_are_empty(scripts: &Scripts) -> bool {
    scripts.0.is_empty()
}

impl AppComposeDocument {
    /// A document for `docker compose`, manifest version 2, with every guarantee on that needs no outside service.
    #[must_use]
    pub fn for_docker_compose(name: &str, compose_file: &str) -> Self {
        Self {
            manifest_version: ManifestVersion(2),
            name: name.to_owned(),
            runner: Runner::DockerCompose,
            docker_compose_file: Some(compose_file.to_owned()),
            init_script: Scripts::default(),
            pre_launch_script: None,
            kms_enabled: false,
            local_key_provider_enabled: false,
            key_provider: Some(KeyProviderKind::Kms),
            key_provider_id: String::new(),
            gateway_enabled: false,
            public_logs: false,
            public_sysinfo: false,
            public_tcbinfo: true,
            allowed_envs: Vec::new(),
            no_instance_id: false,
            secure_time: false,
            storage_fs: Some(StorageFs::Ext4),
            event_log_version: 1,
            verity_volumes: Vec::new(),
            preloaded_images: Vec::new(),
            requirements: None,
        }
    }

    /// Makes demands, which older guests refuse instead of ignoring them: the document is one of manifest version 3 then.
    pub fn demand(&mut self, requirements: Requirements) {
        self.manifest_version = ManifestVersion(REQUIREMENTS_VERSION);
        self.requirements = Some(requirements);
    }

    /// The manifest version, 1 to 3.
    #[must_use]
    pub fn manifest_version(&self) -> u64 {
        self.manifest_version.0
    }

    /// Scripts that run before the container engine, in order.
    #[must_use]
    pub fn init_scripts(&self) -> &[String] {
        &self.init_script.0
    }

    /// Where keys come from, the older selectors considered.
    #[must_use]
    pub fn key_provider(&self) -> KeyProviderKind {
        self.key_provider.unwrap_or(if self.kms_enabled {
            KeyProviderKind::Kms
        } else if self.local_key_provider_enabled {
            KeyProviderKind::Local
        } else {
            KeyProviderKind::None
        })
    }

    /// By which derivations the KMS is to make the keys.
    #[must_use]
    pub fn key_scheme(&self) -> KeyScheme {
        self.requirements.as_ref().and_then(|requirements| requirements.key_scheme).unwrap_or_default()
    }

    /// Chooses where keys come from.
    pub fn set_key_provider(&mut self, kind: KeyProviderKind) {
        self.key_provider = Some(kind);
    }

    fn check(&self) -> Result<(), AppComposeError> {
        let refuse = |field, reason: String| Err(AppComposeError::Field { field, reason });
        let version = self.manifest_version.0;
        if version > MAX_MANIFEST_VERSION {
            return refuse("manifest_version", format!("{version} is newer than {MAX_MANIFEST_VERSION}, the newest this OS knows"));
        }
        if self.runner == Runner::DockerCompose && self.docker_compose_file.as_deref().unwrap_or_default().is_empty() {
            return refuse("docker_compose_file", "missing, and the runner is docker-compose".to_owned());
        }
        if self.init_script.0.len() > MAX_INIT_SCRIPTS {
            return refuse("init_script", format!("{} scripts, at most {MAX_INIT_SCRIPTS}", self.init_script.0.len()));
        }
        let needs_3 = [
            (self.runner == Runner::NerdctlCompose, "runner"),
            (self.init_script.0.len() > 1, "init_script"),
            (self.requirements.is_some(), "requirements"),
        ];
        if let Some((_, field)) = needs_3.into_iter().find(|(used, _)| *used && version < 3) {
            return refuse(field, "needs manifest_version \"3\"".to_owned());
        }
        if !matches!(self.event_log_version, 1 | 2) {
            return refuse("event_log_version", format!("{} is neither 1 nor 2", self.event_log_version));
        }
        if !self.key_provider_id.is_empty() && matches!(self.key_provider(), KeyProviderKind::None | KeyProviderKind::Tpm) {
            return refuse("key_provider_id", format!("set, and the key provider is {}", self.key_provider()));
        }
        if self.key_scheme() != KeyScheme::Compatible && self.key_provider() != KeyProviderKind::Kms {
            return refuse("requirements.key_scheme", format!("only a KMS knows it, and the key provider is {}", self.key_provider()));
        }
        self.check_volumes()
    }

    fn check_volumes(&self) -> Result<(), AppComposeError> {
        let refuse = |field, reason: String| Err(AppComposeError::Field { field, reason });
        for (index, volume) in self.verity_volumes.iter().enumerate() {
            let bare = !volume.source.is_empty() && !volume.source.starts_with('.') && !volume.source.contains(['/', ',', '=', '\0']);
            if !bare {
                return refuse("verity_volumes", format!("source {:?} is not a bare file name", volume.source));
            }
            if !volume.target.starts_with('/') || volume.target.split('/').any(|part| part == "..") {
                return refuse("verity_volumes", format!("target {:?} is not an absolute path", volume.target));
            }
            if self.verity_volumes.iter().skip(index + 1).any(|other| other.target == volume.target) {
                return refuse("verity_volumes", format!("target {:?} is used twice", volume.target));
            }
        }
        for image in &self.preloaded_images {
            if image.volume >= self.verity_volumes.len() {
                return refuse("preloaded_images", format!("{:?} names volume {}, which does not exist", image.reference, image.volume));
            }
        }
        Ok(())
    }
}

/// A checked document together with the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppCompose {
    raw: Vec<u8>,
    document: AppComposeDocument,
}

impl AppCompose {
    /// Reads and checks a document. `raw`: untrusted bytes, kept as they are.
    ///
    /// Errors: too large, not JSON of the right shape (with the position), or fields that contradict each other.
    pub fn parse(raw: Vec<u8>) -> Result<Self, AppComposeError> {
        if u64::try_from(raw.len()).is_ok_and(|len| len > MAX_APP_COMPOSE_BYTES) {
            return Err(AppComposeError::TooLarge { got: raw.len() });
        }
        let document: AppComposeDocument = serde_json::from_slice(&raw).map_err(|error| AppComposeError::Syntax {
            line: error.line(),
            column: error.column(),
            reason: error.to_string(),
        })?;
        document.check()?;
        Ok(Self { raw, document })
    }

    /// Fixes the bytes of a new document: its canonical form, two-space indented JSON with a final newline.
    ///
    /// Errors: fields that contradict each other.
    pub fn from_document(document: AppComposeDocument) -> Result<Self, AppComposeError> {
        document.check()?;
        let mut raw = serde_json::to_vec_pretty(&document).map_err(|error| AppComposeError::Syntax {
            line: error.line(),
            column: error.column(),
            reason: error.to_string(),
        })?;
        raw.push(b'\n');
        Ok(Self { raw, document })
    }

    /// The bytes, exactly as read.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The fields.
    #[must_use]
    pub fn document(&self) -> &AppComposeDocument {
        &self.document
    }

    /// SHA-256 of the bytes.
    #[must_use]
    pub fn compose_hash(&self) -> ComposeHash {
        ComposeHash::of(&self.raw)
    }
}

#[cfg(test)]
mod tests;
