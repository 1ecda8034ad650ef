//! The configuration file and the checked settings made from it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_attestation::parse_certificate;
use dstack_release_log::Cosigner;
use dstack_rpc::Endpoint;
use dstack_service::config::ConfigError;
use serde::{Deserialize, Serialize};

use crate::{domain::Domain, release_log::WitnessSettings, sealing::Pcrs};

mod attestation;
mod keys;

pub use attestation::{AcceptedTee, AttestationFile};
pub use keys::{Admin, FirstStart, Onboard, Sealing, SealingProvider, TeeConfig};

pub use crate::sealing::PcrBank;

/// Name of a KMS that nobody named.
const DEFAULT_DOMAIN: &str = "kms.dstack.internal";

/// `kms.toml`. Every key but the three paths has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Where HTTPS is served.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Directory of keys and certificates; made at the first start. Its parent must be writable.
    pub cert_dir: PathBuf,
    /// Name in the certificate of the HTTPS server.
    /// Without it, the one chosen when the keys came, else `kms.dstack.internal`.
    #[serde(default)]
    pub domain: Option<String>,
    /// Who gets keys, as a file. Followed while running. Either this or `webhook`.
    #[serde(default)]
    pub allow_list: Option<PathBuf>,
    /// Who gets keys, as an HTTP service decides.
    #[serde(default)]
    pub webhook: Option<WebhookFile>,
    /// Collateral service (PCCS, or Intel's PCS), `http` or `https`.
    pub collateral_url: String,
    /// File that holds the process id once requests are served.
    #[serde(default)]
    pub ready_file: Option<PathBuf>,
    /// Longest validity of a certificate made for an app, in days.
    #[serde(default = "default_certificate_days")]
    pub max_certificate_days: u32,
    /// Domains that the alternative names of apps' certificates must be in; empty allows every name but the KMS's own.
    #[serde(default)]
    pub app_domains: Vec<String>,
    /// Verifications that run at a time; others wait.
    #[serde(default = "default_verifications")]
    pub max_verifications: usize,
    /// Verified clients that are remembered.
    #[serde(default = "default_cache")]
    pub verified_cache_entries: usize,
    /// Whose evidence is believed.
    #[serde(default)]
    pub attestation: AttestationFile,
    /// This machine's own evidence.
    #[serde(default)]
    pub tee: TeeConfig,
    /// Keys at rest.
    #[serde(default)]
    pub sealing: Sealing,
    /// A start without keys.
    #[serde(default)]
    pub onboard: Onboard,
    /// Admin calls.
    #[serde(default)]
    pub admin: Admin,
    /// Where releases are logged, and who signs that.
    #[serde(default)]
    pub release_log: ReleaseLogFile,
    /// What peers are granted.
    #[serde(default)]
    pub limits: LimitsFile,
    /// Everything that weakens a guarantee.
    #[serde(default)]
    pub danger: Danger,
}

/// The `[limits]` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Connections at a time; more wait.
    pub connections: usize,
    /// Calls a second of one source (an IPv4 address, or an IPv6 network of 64 bits).
    pub per_source: u32,
    /// Releases and refusals a second of one app.
    pub per_app: u32,
    /// Serve `/metrics`, where counters can be read by everybody who reaches the address.
    pub metrics: bool,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self { connections: 4096, per_source: 1000, per_app: 1000, metrics: true }
    }
}

impl LimitsFile {
    /// What the listener grants.
    pub(crate) fn connections(&self) -> dstack_rpc::Limits {
        dstack_rpc::Limits { connections: self.connections, ..dstack_rpc::Limits::default() }
    }

    fn problems(&self) -> Vec<String> {
        let checks = [
            ((1..=100_000).contains(&self.connections), "limits.connections: must be 1 to 100000"),
            ((1..=1_000_000).contains(&self.per_source), "limits.per_source: must be 1 to 1000000"),
            ((1..=1_000_000).contains(&self.per_app), "limits.per_app: must be 1 to 1000000"),
        ];
        checks.into_iter().filter(|(is_good, _)| !is_good).map(|(_, rule)| rule.to_owned()).collect()
    }
}

/// The `[release_log]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseLogFile {
    /// Directory of the log; default is `cert_dir` with `-release-log` behind its name.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// Who signs that the log only grows.
    #[serde(default)]
    pub witnesses: Vec<WitnessFile>,
}

/// One of `[[release_log.witnesses]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessFile {
    /// Address, `http` or `https`; `/add-checkpoint` is added.
    pub url: String,
    /// Its verifier key: name, id, and the key in base64, with plus signs between.
    pub verifier_key: String,
}

/// The `[webhook]` table: a service that decides who gets keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookFile {
    /// Address, `http` or `https`; `/bootAuth/app` and `/bootAuth/kms` are added.
    pub url: String,
    /// For one whole answer; after that the boot is denied.
    #[serde(default = "default_webhook_timeout")]
    pub timeout_ms: u64,
}

/// The `[danger]` table: off by default, logged at each start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Danger {
    /// Run where no TEE protects the root keys from the host.
    #[serde(default)]
    pub run_without_tee: bool,
    /// Believe hardware whose ACPI tables nobody can recompute; the guest's kernel runs code from them.
    #[serde(default)]
    pub accept_unchecked_acpi: bool,
    /// Release keys without asking the policy whether it allows this KMS itself.
    #[serde(default)]
    pub skip_self_authorization: bool,
    /// Ask the webhook about evidence of a software TEE. An allow list says for itself whether it accepts it.
    #[serde(default)]
    pub webhook_decides_simulated: bool,
    /// Certificate (DER or PEM) of a software TEE's vendor root. Evidence under it proves nothing about hardware.
    #[serde(default)]
    pub simulated_root: Option<PathBuf>,
    /// Device of a software TEE that stands for this machine's TEE, as an endpoint. Needs a build with the feature `simulated`.
    #[serde(default)]
    pub simulated_tee: Option<String>,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000))
}

fn default_webhook_timeout() -> u64 {
    5000
}

fn default_certificate_days() -> u32 {
    3650
}

fn default_verifications() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn default_cache() -> usize {
    1024
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not readable as this file.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Values that break rules, all of them.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Values {
        /// The file.
        path: PathBuf,
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
            Self::Values { path, .. } => format!("correct the named keys in {}; kms.example.toml shows each", path.display()),
        }
    }
}

/// Where decisions come from.
#[derive(Debug, Clone)]
pub(crate) enum PolicySource {
    AllowList(PathBuf),
    Webhook { endpoint: Endpoint, timeout: Duration },
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) file: ConfigFile,
    /// As configured.
    pub(crate) domain: Option<Domain>,
    pub(crate) mr_enclave: Option<[u8; 32]>,
    pub(crate) tpm_pcrs: Pcrs,
    pub(crate) policy: PolicySource,
    pub(crate) witnesses: Vec<WitnessSettings>,
    pub(crate) app_domains: Vec<Domain>,
    pub(crate) simulated_root: Option<Vec<u8>>,
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// Errors: unreadable, or every broken rule.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SettingsError> {
        let path = path.as_ref();
        Self::check(dstack_service::config::load(path)?, path)
    }

    /// Checks a configuration that came from `path`.
    ///
    /// Errors: every broken rule.
    pub fn check(file: ConfigFile, path: &Path) -> Result<Self, SettingsError> {
        let mut problems = file.limits.problems();
        problems.extend(file.attestation.problems());
        let domain = file.domain.as_deref().map(str::parse::<Domain>).transpose();
        let domain = domain.map_err(|error| problems.push(format!("domain: {error}"))).ok();
        let mr_enclave = file.sealing.mr_enclave.as_deref().map(parse_mr_enclave).transpose();
        let mr_enclave = mr_enclave.map_err(|reason| problems.push(format!("sealing.mr_enclave: {reason}"))).ok();
        let tpm_pcrs = Pcrs::new(file.sealing.tpm_bank, &file.sealing.tpm_pcrs);
        let tpm_pcrs = tpm_pcrs.map_err(|rule| problems.push(format!("sealing.tpm_pcrs: {rule}"))).ok();
        if file.admin.listen.is_some() && file.admin.token_file.is_none() && file.admin.htpasswd_file.is_none() {
            problems.push("admin.token_file: missing; the admin calls need a token, or users in htpasswd_file".to_owned());
        }
        if !(1..=36_500).contains(&file.max_certificate_days) {
            problems.push("max_certificate_days: must be 1 to 36500".to_owned());
        }
        if !(1..=1024).contains(&file.max_verifications) {
            problems.push("max_verifications: must be 1 to 1024".to_owned());
        }
        if !(1..=1_000_000).contains(&file.verified_cache_entries) {
            problems.push("verified_cache_entries: must be 1 to 1000000".to_owned());
        }
        if file.cert_dir.file_name().is_none() {
            problems.push("cert_dir: must name a directory that can be made".to_owned());
        }
        if let Err(error) = dstack_ra_tls::collateral::CollateralClient::new(&file.collateral_url) {
            problems.push(format!("collateral_url: {error}"));
        }
        let witnesses = file.release_log.witnesses.iter().map(witness).collect::<Result<Vec<_>, _>>();
        let witnesses = witnesses.map_err(|problem| problems.push(problem)).unwrap_or_default();
        let policy = policy_source(&file).map_err(|problem| problems.push(problem)).ok();
        let simulated_root = file.danger.simulated_root.as_ref().map(|root| read_certificate(root));
        let simulated_root = simulated_root.transpose().map_err(|reason| problems.push(format!("danger.simulated_root: {reason}"))).ok();
        let app_domains = file.app_domains.iter().map(|name| name.parse::<Domain>()).collect::<Result<Vec<_>, _>>();
        let app_domains = app_domains.map_err(|error| problems.push(format!("app_domains: {error}"))).unwrap_or_default();
        match (domain, mr_enclave, tpm_pcrs, policy, simulated_root) {
            (Some(domain), Some(mr_enclave), Some(tpm_pcrs), Some(policy), Some(simulated_root)) if problems.is_empty() => {
                Ok(Self { file, domain, mr_enclave, tpm_pcrs, policy, witnesses, app_domains, simulated_root })
            }
            _ => Err(SettingsError::Values { path: path.to_owned(), problems }),
        }
    }

    /// Name of the HTTPS server where none was chosen otherwise.
    pub(crate) fn first_domain(&self) -> Domain {
        self.domain.clone().unwrap_or_else(|| Domain::fixed(DEFAULT_DOMAIN))
    }

    /// Where the key comes from that encrypts the keys at rest.
    pub(crate) fn sealing_provider(&self) -> SealingProvider {
        let default = if self.file.danger.run_without_tee { SealingProvider::None } else { SealingProvider::LocalKeyProvider };
        self.file.sealing.provider.unwrap_or(default)
    }

    /// Directory of the release log.
    pub(crate) fn release_log_dir(&self) -> PathBuf {
        self.file.release_log.dir.clone().unwrap_or_else(|| self.beside("-release-log"))
    }

    /// File of the key that a TPM sealed.
    pub(crate) fn tpm_key_file(&self) -> PathBuf {
        self.file.sealing.tpm_key_file.clone().unwrap_or_else(|| self.beside("-tpm-key"))
    }

    /// `cert_dir` with more behind its name.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.file.cert_dir.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// The configuration in force, as TOML. There is no secret in it.
    #[must_use]
    pub fn effective(&self) -> String {
        toml::to_string_pretty(&self.file).unwrap_or_default()
    }
}

fn witness(file: &WitnessFile) -> Result<WitnessSettings, String> {
    let endpoint = Endpoint::parse(&file.url).map_err(|error| format!("release_log.witnesses.url: {error}"))?;
    let cosigner = Cosigner::parse(&file.verifier_key).map_err(|error| format!("release_log.witnesses.verifier_key: {error}"))?;
    Ok(WitnessSettings { endpoint, cosigner })
}

fn policy_source(file: &ConfigFile) -> Result<PolicySource, String> {
    match (&file.allow_list, &file.webhook) {
        (Some(path), None) => Ok(PolicySource::AllowList(path.clone())),
        (None, Some(webhook)) => {
            if !(1..=60_000).contains(&webhook.timeout_ms) {
                return Err("webhook.timeout_ms: must be 1 to 60000".to_owned());
            }
            let endpoint = Endpoint::parse(&webhook.url).map_err(|error| format!("webhook.url: {error}"))?;
            Ok(PolicySource::Webhook { endpoint, timeout: Duration::from_millis(webhook.timeout_ms) })
        }
        (None, None) => Err("allow_list: give allow_list or [webhook], nobody gets keys without a policy".to_owned()),
        (Some(_), Some(_)) => Err("webhook: allow_list and [webhook] exclude each other".to_owned()),
    }
}

fn parse_mr_enclave(text: &str) -> Result<[u8; 32], &'static str> {
    hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or("must be 64 hex digits")
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse_certificate(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const SMALLEST: &str = "cert_dir = \"/x/kms\"\nallow_list = \"/x/allow.toml\"\ncollateral_url = \"http://127.0.0.1:8081\"\n";

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        let path = Path::new("kms.toml");
        Settings::check(dstack_service::config::parse(text, path)?, path)
    }

    #[test]
    fn three_paths_suffice_and_nothing_is_dangerous() {
        let settings = parse(SMALLEST).unwrap();

        assert_eq!(settings.file.danger, Danger::default());
        assert_eq!(settings.file.listen.to_string(), "0.0.0.0:8000");
    }

    #[test]
    fn exactly_one_source_of_policy_is_asked_for() {
        let base = "cert_dir = \"/x/kms\"\ncollateral_url = \"http://127.0.0.1:8081\"\n";
        let webhook = "[webhook]\nurl = \"http://127.0.0.1:3000\"\n";
        let refused = |text: &str| parse(text).unwrap_err().to_string();

        assert!(
            matches!(parse(&format!("{base}{webhook}")).unwrap().policy, PolicySource::Webhook { timeout, .. } if timeout.as_secs() == 5)
        );
        assert!(refused(base).contains("allow_list: give"));
        assert!(refused(&format!("{SMALLEST}{webhook}")).contains("exclude each other"));
        assert!(refused(&format!("{base}{webhook}timeout_ms = 0\n")).contains("webhook.timeout_ms"));
        assert!(refused(&format!("{base}[webhook]\nurl = \"auth-api\"\n")).contains("webhook.url"));
    }

    #[test]
    fn all_problems_come_at_once() {
        let text = format!(
            "{SMALLEST}domain = \"a_b\"\nmax_certificate_days = 0\napp_domains = [\"c_d\"]\n[danger]\nsimulated_root = \"/nonexistent\"\n"
        );

        let error = parse(&text).unwrap_err().to_string();

        for key in ["domain:", "max_certificate_days:", "app_domains:", "danger.simulated_root:"] {
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn only_td_guests_are_believed_unless_more_are_named() {
        let accepts = |text: &str| parse(&format!("{SMALLEST}{text}")).map(|settings| settings.file.attestation.accepts_snp());

        assert!(!accepts("").unwrap() && !accepts("[attestation]\naccept = [\"tdx\"]\n").unwrap());
        assert!(accepts("[attestation]\naccept = [\"tdx\", \"sev-snp\"]\n").unwrap());
        for (text, named) in [
            ("accept = [\"sev-snp\"]", "attestation.accept:"),
            ("accept = [\"sgx\"]", "unknown variant `sgx`"),
            ("amd_kds_url = \"kds\"", "attestation.amd_kds_url:"),
            ("accepts = []", "unknown field `accepts`"),
        ] {
            let error = accepts(&format!("[attestation]\n{text}\n")).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let error = parse(&format!("{SMALLEST}run_without_tee = true\n")).unwrap_err();

        assert!(error.to_string().starts_with("kms.toml:4:1: unknown field `run_without_tee`"), "{error}");
    }

    #[test]
    fn the_example_file_is_valid_and_shows_every_key() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kms.example.toml")).unwrap();
        let commented: String = text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect::<Vec<_>>().join("\n");

        let active: ConfigFile = dstack_service::config::parse(&text, Path::new("kms.example.toml")).unwrap();
        let all: ConfigFile = dstack_service::config::parse(&commented, Path::new("kms.example.toml")).unwrap();

        assert_eq!(active.danger, Danger::default());
        let shown: toml::Table = toml::from_str(&commented).unwrap();
        let known: toml::Table = toml::from_str(&toml::to_string(&all).unwrap()).unwrap();
        assert_eq!(shown.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
        let danger = |table: &toml::Table| table["danger"].as_table().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(danger(&shown), ["accept_unchecked_acpi", "run_without_tee", "skip_self_authorization", "webhook_decides_simulated"]);
        assert_eq!(danger(&known), danger(&shown), "simulated_root and simulated_tee are shown in prose: they need more");
    }
}
