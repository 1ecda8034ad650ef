//! The configuration file and the checked settings made from it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_attestation::{Policy, TrustAnchors, parse_certificate};
use dstack_os_image::fetch::FetchLimits;
use dstack_ra_tls::collateral::{ChipKeyClient, CollateralClient, CollateralLimits, FetchError};
use dstack_rpc::system_tls;
use dstack_service::config::ConfigError;
use serde::{Deserialize, Serialize};

use crate::environment::{self, PREFIX};

/// `verifier.toml`. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on; 0 picks a free one.
    pub port: u16,
    /// File that holds the process id once requests are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
    /// Policy (TOML); absent gives the cryptographic verdict and reports everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PathBuf>,
    /// Collateral service (PCCS, or Intel's PCS), `http` or `https`.
    pub collateral_url: String,
    /// AMD's key distribution service (KDS) or a cache of it, for SNP reports without the certificate of their key; empty asks nobody.
    pub amd_kds_url: String,
    /// Seconds for which collateral that is due for renewal is still used while its source is down; 0 never.
    pub collateral_max_stale_secs: u64,
    /// Directory of downloaded OS images, made if need be.
    pub image_cache_dir: PathBuf,
    /// Address of an OS image's archive, with `{OS_IMAGE_HASH}` in it; empty downloads nothing.
    pub image_download_url: String,
    /// Seconds for a download.
    pub image_download_timeout_secs: u64,
    /// Largest archive, in MiB.
    pub image_max_archive_mib: u64,
    /// Largest image once unpacked, in MiB.
    pub image_max_unpacked_mib: u64,
    /// Images kept; the oldest goes first.
    pub image_cache_entries: usize,
    /// Largest request, in KiB.
    pub max_body_kib: usize,
    /// Requests at a time; more are told to come again.
    pub max_requests: usize,
    /// Verifications at a time; more wait.
    pub max_verifications: usize,
    /// Seconds for a whole request.
    pub request_timeout_secs: u64,
    /// Everything that weakens a guarantee.
    pub danger: Danger,
}

/// The `[danger]` table: off by default, logged at each start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Danger {
    /// Certificate (DER or PEM) of a software TEE's vendor root. Evidence under it proves nothing about hardware; verdicts say SIMULATED.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated_root: Option<PathBuf>,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::UNSPECIFIED.into(),
            port: 8080,
            ready_file: None,
            policy: None,
            collateral_url: "https://pccs.phala.network".to_owned(),
            amd_kds_url: ChipKeyClient::AMD.to_owned(),
            collateral_max_stale_secs: 0,
            image_cache_dir: "/var/cache/dstack-verifier".into(),
            image_download_url: "https://download.dstack.org/os-images/mr_{OS_IMAGE_HASH}.tar.gz".to_owned(),
            image_download_timeout_secs: 300,
            image_max_archive_mib: 1024,
            image_max_unpacked_mib: 4096,
            image_cache_entries: 16,
            max_body_kib: 4096,
            max_requests: 64,
            max_verifications: std::thread::available_parallelism().map_or(2, usize::from),
            request_timeout_secs: 60,
            danger: Danger::default(),
        }
    }
}

impl ConfigFile {
    fn collateral_limits(&self) -> CollateralLimits {
        CollateralLimits { max_stale: Duration::from_secs(self.collateral_max_stale_secs), ..CollateralLimits::default() }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not readable as this file.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Values that break rules, all of them.
    #[error("{origin}: {}", problems.join("; "))]
    Values {
        /// The file, or the environment.
        origin: String,
        /// `key: rule`.
        problems: Vec<String>,
    },
}

impl UserFacing for SettingsError {
    fn code(&self) -> &'static str {
        match self {
            Self::File(error) => error.code(),
            Self::Values { .. } => "config/invalid",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::File(error) => error.fix(),
            Self::Values { origin, .. } => format!("correct the named keys in {origin}; verifier.example.toml shows each"),
        }
    }
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) file: ConfigFile,
    pub(crate) anchors: TrustAnchors,
    pub(crate) policy: Policy,
    pub(crate) policy_name: String,
}

impl Settings {
    /// Reads `path` (or starts from the defaults), puts the environment over it, and checks the result.
    ///
    /// Errors: unreadable, or every broken rule.
    pub fn load(path: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        let mut table = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                // Unknown keys of the file are reported at their line.
                let _file: ConfigFile = dstack_service::config::parse(&text, path)?;
                dstack_service::config::parse(&text, path)?
            }
            None => toml::Table::new(),
        };
        let name = path.map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
        let broken = |origin: &str, problem: String| SettingsError::Values { origin: origin.to_owned(), problems: vec![problem] };
        let used = environment::overlay(&mut table, variables).map_err(|error| broken("the environment", error.to_string()))?;
        let origin = if used.is_empty() { name } else { format!("{name} and {}", used.join(", ")) };
        let file = table.try_into::<ConfigFile>().map_err(|error| broken(&origin, format!("{PREFIX}*: {}", error.message())))?;
        Self::check(file, &origin)
    }

    /// Checks a configuration that came from `origin`.
    ///
    /// Errors: every broken rule.
    pub fn check(file: ConfigFile, origin: &str) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let ranges = [
            ("image_download_timeout_secs", file.image_download_timeout_secs, 1..=86_400),
            ("image_max_archive_mib", file.image_max_archive_mib, 1..=65_536),
            ("image_max_unpacked_mib", file.image_max_unpacked_mib, 1..=65_536),
            ("image_cache_entries", file.image_cache_entries as u64, 1..=10_000),
            ("max_body_kib", file.max_body_kib as u64, 16..=12_288),
            ("max_requests", file.max_requests as u64, 1..=10_000),
            ("max_verifications", file.max_verifications as u64, 1..=1024),
            ("request_timeout_secs", file.request_timeout_secs, 1..=3600),
        ];
        for (key, value, range) in ranges {
            if !range.contains(&value) {
                problems.push(format!("{key}: must be {} to {}", range.start(), range.end()));
            }
        }
        if let Err(error) = CollateralClient::new(&file.collateral_url) {
            problems.push(format!("collateral_url: {error}"));
        }
        if let Err(error) = chip_keys(&file) {
            problems.push(format!("amd_kds_url: {error}"));
        }
        let anchors = trust_anchors(&file.danger).map_err(|reason| problems.push(format!("danger.simulated_root: {reason}"))).ok();
        let policy = load_policy(file.policy.as_deref()).map_err(|reason| problems.push(format!("policy: {reason}"))).ok();
        match (anchors, policy) {
            (Some(anchors), Some((policy, policy_name))) if problems.is_empty() => Ok(Self { file, anchors, policy, policy_name }),
            _ => Err(SettingsError::Values { origin: origin.to_owned(), problems }),
        }
    }

    /// The configuration in force, as TOML. There is no secret in it.
    #[must_use]
    pub fn effective(&self) -> String {
        toml::to_string_pretty(&self.file).unwrap_or_default()
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.file.address, self.file.port)
    }

    pub(crate) fn collateral(&self) -> Result<CollateralClient, FetchError> {
        let client = CollateralClient::new(&self.file.collateral_url)?.with_tls(system_tls());
        Ok(client.with_anchors(self.anchors.clone()).with_limits(self.file.collateral_limits()))
    }

    pub(crate) fn chip_keys(&self) -> Result<Option<ChipKeyClient>, FetchError> {
        let client = chip_keys(&self.file)?;
        Ok(client.map(|client| client.with_tls(system_tls()).with_limits(self.file.collateral_limits())))
    }

    pub(crate) fn fetch_limits(&self) -> FetchLimits {
        FetchLimits {
            compressed_bytes: self.file.image_max_archive_mib << 20,
            unpacked_bytes: self.file.image_max_unpacked_mib << 20,
            timeout: Duration::from_secs(self.file.image_download_timeout_secs),
            images: self.file.image_cache_entries,
            ..FetchLimits::default()
        }
    }
}

fn chip_keys(file: &ConfigFile) -> Result<Option<ChipKeyClient>, FetchError> {
    if file.amd_kds_url.is_empty() { Ok(None) } else { ChipKeyClient::new(&file.amd_kds_url).map(Some) }
}

fn trust_anchors(danger: &Danger) -> Result<TrustAnchors, String> {
    let Some(path) = &danger.simulated_root else { return Ok(TrustAnchors::hardware()) };
    let der = read_certificate(path)?;
    TrustAnchors::hardware().danger_simulated_root(der).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse_certificate(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// The policy with its name for people.
fn load_policy(path: Option<&Path>) -> Result<(Policy, String), String> {
    let Some(path) = path else { return Ok((Policy::report_only(), "none: the cryptographic verdict".to_owned())) };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let policy = Policy::from_toml(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((policy, path.display().to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const NOTHING: [(String, String); 0] = [];

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("verifier.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(Some(&path), variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn nothing_is_needed_and_nothing_is_dangerous() {
        let settings = Settings::load(None, NOTHING).unwrap();

        assert_eq!(settings.listen().to_string(), "0.0.0.0:8080");
        assert_eq!(settings.file.danger, Danger::default());
        assert!(!settings.anchors.accepts_simulated());
        assert_eq!(toml::from_str::<ConfigFile>(&settings.effective()).unwrap(), settings.file);
    }

    #[test]
    fn environment_wins_and_is_held_to_the_same_rules() {
        let settings = load("port = 1\n", &[("DSTACK_VERIFIER_PORT", "2"), ("DSTACK_VERIFIER_ADDRESS", "127.0.0.1")]).unwrap();
        assert_eq!(settings.listen().to_string(), "127.0.0.1:2");

        for (name, value, named) in [
            ("DSTACK_VERIFIER_HOST", "x", "unknown field `host`"),
            ("DSTACK_VERIFIER_DANGER__TRUST_ALL", "true", "unknown field `trust_all`"),
            ("DSTACK_VERIFIER_PORT", "70000", "70000"),
            ("DSTACK_VERIFIER_MAX_REQUESTS", "0", "max_requests: must be 1 to 10000"),
        ] {
            let error = load("", &[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(named) && error.to_string().contains(name), "{error}");
            assert_eq!(error.code(), "config/invalid");
        }
    }

    #[test]
    fn all_problems_come_at_once() {
        let text = "max_body_kib = 1\ncollateral_url = \"x\"\namd_kds_url = \"ftp://x\"\npolicy = \"/nonexistent\"\n[danger]\nsimulated_root = \"/nonexistent\"\n";

        let error = load(text, &[]).unwrap_err().to_string();

        for key in ["max_body_kib:", "collateral_url:", "amd_kds_url:", "policy:", "danger.simulated_root:"] {
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let error = load("port = 1\nhost = \"x\"\n", &[]).unwrap_err();

        assert!(error.to_string().contains("verifier.toml:2:1: unknown field `host`"), "{error}");
    }

    #[test]
    fn a_policy_is_read_and_its_unknown_keys_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        std::fs::write(&path, "version = 1\n[tcb]\naccepted = [\"UpToDate\"]\n").unwrap();
        let (policy, name) = load_policy(Some(&path)).unwrap();
        assert_eq!(policy.image, dstack_attestation::ImageRule::Required);
        assert_eq!(policy.accepted_tcb, Some(vec![dstack_attestation::TcbStatus::UpToDate]));
        assert!(name.ends_with("policy.toml") && !policy.accept_unchecked_acpi);

        std::fs::write(&path, "version = 1\nrequired_image = true\n").unwrap();
        assert!(load_policy(Some(&path)).unwrap_err().contains("required_image"));
    }

    #[test]
    fn the_example_file_is_valid_and_shows_every_key_with_its_default() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/verifier.example.toml")).unwrap();
        let commented: String = text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect::<Vec<_>>().join("\n");

        let active: ConfigFile = dstack_service::config::parse(&text, Path::new("verifier.example.toml")).unwrap();
        let shown: ConfigFile = dstack_service::config::parse(&commented, Path::new("verifier.example.toml")).unwrap();

        assert_eq!(active, ConfigFile::default());
        let defaults = ConfigFile { max_verifications: 2, ..ConfigFile::default() };
        let named = ConfigFile {
            ready_file: Some("/run/dstack/verifier.ready".into()),
            policy: Some("/etc/dstack/policy.toml".into()),
            danger: Danger { simulated_root: Some("/path/to/root.pem".into()) },
            ..defaults
        };
        assert_eq!(shown, named, "every key, and where it has a default that one");
    }
}
