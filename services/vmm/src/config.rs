//! Configuration file.

use std::{net::SocketAddr, path::PathBuf};

use dstack_api::wire;
use serde::{Deserialize, Serialize};

/// `vmm.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the API and the console are served.
    #[serde(default = "address")]
    pub address: SocketAddr,
    /// Host names besides loopback under which browsers may reach the API.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// VM directories, one per VM; keep it short, since Unix sockets lie in them.
    pub run_path: PathBuf,
    /// The database; its directory must exist.
    pub database: PathBuf,
    /// Shown in the console's title.
    #[serde(default)]
    pub node_name: String,
    /// The KMS that `GetAppEnvEncryptPubKey` asks; empty for none.
    #[serde(default)]
    pub kms_url: String,
    /// PEM of the CA that the KMS's certificate must come from, where `kms_url` is https.
    #[serde(default)]
    pub kms_ca_file: PathBuf,
    /// Events kept per VM.
    #[serde(default = "event_buffer_size")]
    pub event_buffer_size: u32,
    /// Written once requests are served; empty for nowhere.
    #[serde(default)]
    pub pid_file: PathBuf,
    /// OS images.
    pub image: ImageConfig,
    /// What guests get.
    #[serde(default)]
    pub cvm: CvmConfig,
    /// Only for the app URL.
    #[serde(default)]
    pub gateway: GatewayConfig,
    /// Who may call.
    #[serde(default)]
    pub auth: AuthConfig,
    /// The process supervisor.
    pub supervisor: SupervisorConfig,
    /// The software TEE; absent where there is none.
    pub tee_simulator: Option<TeeSimulatorConfig>,
    /// Settings that weaken a guarantee.
    #[serde(default)]
    pub danger: DangerConfig,
}

/// `[image]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// One directory per OS image.
    pub path: PathBuf,
}

/// `[gateway]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Domain of application URLs; empty for none.
    pub base_domain: String,
    /// Public port of the gateway.
    pub port: u16,
    /// Port of the guest agent.
    pub agent_port: u16,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self { base_domain: String::new(), port: 443, agent_port: wire::AGENT_PORT }
    }
}

/// `[auth]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// File (0600) with the bearer token; its first line counts.
    pub token_file: PathBuf,
}

/// `[supervisor]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorConfig {
    /// Its Unix socket.
    pub sock: PathBuf,
}

/// `[tee_simulator]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeeSimulatorConfig {
    /// Control endpoint, `unix:/path`.
    pub control: String,
}

/// `[danger]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DangerConfig {
    /// Serve the API without a token. Every local user and every guest can then control all VMs.
    pub allow_unauthenticated: bool,
}

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM where a guest really starts under it, else TCG.
    #[default]
    Auto,
    /// KVM, probed or not.
    Kvm,
    /// Emulation.
    Tcg,
}

/// How guests reach the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VsockChoice {
    /// Kernel vhost where `/dev/vhost-vsock` exists, else vhost-user.
    #[default]
    Auto,
    /// `vhost-vsock-pci`.
    Kernel,
    /// `vhost-user-vsock-pci` with one `vhost-device-vsock` per VM.
    VhostUser,
}

/// `[cvm]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CvmConfig {
    /// QEMU; a bare name is looked up in the usual directories.
    pub qemu_path: PathBuf,
    /// kvm, tcg or auto.
    pub accelerator: AcceleratorChoice,
    /// CPU model under TCG.
    pub tcg_cpu: String,
    /// kernel, vhost-user or auto.
    pub vsock: VsockChoice,
    /// The `vhost-device-vsock` program.
    pub vhost_device_vsock: PathBuf,
    /// Handed to guests unless a VM names its own.
    pub kms_urls: Vec<String>,
    /// Handed to guests unless a VM names its own.
    pub gateway_urls: Vec<String>,
    /// Collateral source handed to guests; empty for none.
    pub pccs_url: String,
    /// Registry mirror handed to guests; empty for none.
    pub docker_registry: String,
    /// Where verity volumes lie; empty for none.
    pub volumes_dir: PathBuf,
    /// First CID; at least 3.
    pub cid_start: u32,
    /// How many CIDs, hence how many VMs.
    pub cid_pool_size: u32,
    /// vCPUs of all started VMs together; 0 means four per host CPU, at least 16.
    pub max_allocable_vcpu: u32,
    /// MiB of all started VMs together; 0 means the host's memory.
    pub max_allocable_memory_in_mb: u32,
    /// Smallest VM, MiB.
    pub min_memory_mib: u32,
    /// Largest data disk, GiB.
    pub max_disk_size_gib: u32,
    /// vsock port of the host API.
    pub host_api_port: u32,
    /// vsock port of the quote generation service (real TDX).
    pub qgs_port: u16,
    /// Seconds a guest has to shut down after the agent was asked.
    pub shutdown_guest_seconds: u64,
    /// Seconds a guest has to shut down after the power button.
    pub shutdown_acpi_seconds: u64,
    /// Seconds between SIGTERM and SIGKILL for QEMU.
    pub stop_grace_seconds: u64,
    /// Serial logs are rotated beyond this size; 0 never.
    pub log_max_bytes: u64,
    /// Older pieces kept of each serial log.
    pub log_backups: u32,
    /// Host ports of guests.
    pub port_mapping: PortMappingConfig,
}

impl Default for CvmConfig {
    fn default() -> Self {
        Self {
            qemu_path: "qemu-system-x86_64".into(),
            accelerator: AcceleratorChoice::Auto,
            tcg_cpu: "max".to_owned(),
            vsock: VsockChoice::Auto,
            vhost_device_vsock: "vhost-device-vsock".into(),
            kms_urls: Vec::new(),
            gateway_urls: Vec::new(),
            pccs_url: String::new(),
            docker_registry: String::new(),
            volumes_dir: PathBuf::new(),
            cid_start: 1000,
            cid_pool_size: 1000,
            max_allocable_vcpu: 0,
            max_allocable_memory_in_mb: 0,
            min_memory_mib: 512,
            max_disk_size_gib: 4096,
            host_api_port: wire::HOST_API_PORT,
            qgs_port: 4050,
            shutdown_guest_seconds: 30,
            shutdown_acpi_seconds: 15,
            stop_grace_seconds: 5,
            log_max_bytes: 4 << 20,
            log_backups: 3,
            port_mapping: PortMappingConfig::default(),
        }
    }
}

/// `[cvm.port_mapping]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortMappingConfig {
    /// Whether VMs may have host ports.
    pub enabled: bool,
    /// Address where a mapping names none.
    pub address: String,
    /// Allowed host ports; empty means 1 to 65535.
    pub range: Vec<PortRange>,
}

impl Default for PortMappingConfig {
    fn default() -> Self {
        Self { enabled: true, address: "127.0.0.1".to_owned(), range: Vec::new() }
    }
}

/// Host ports that VMs may have.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// First port.
    pub from: u16,
    /// Last port.
    pub to: u16,
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9080))
}

fn event_buffer_size() -> u32 {
    64
}

/// Longest path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;

impl Config {
    /// Every rule that is broken, one sentence each, naming its key.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let cvm = &self.cvm;
        if cvm.cid_start < 3 {
            problems.push(format!("cvm.cid_start: {} is reserved, 3 is the first that guests may have", cvm.cid_start));
        }
        if cvm.cid_pool_size == 0 || cvm.cid_start.checked_add(cvm.cid_pool_size).is_none() {
            problems.push("cvm.cid_pool_size: must be above 0 and end below 2^32".to_owned());
        }
        if cvm.tcg_cpu.is_empty() || cvm.tcg_cpu.contains(char::is_whitespace) {
            problems.push("cvm.tcg_cpu: must be a QEMU CPU model".to_owned());
        }
        for range in &cvm.port_mapping.range {
            if range.from == 0 || range.from > range.to || !matches!(range.protocol.as_str(), "tcp" | "udp") {
                problems.push(format!(
                    "cvm.port_mapping.range: {} {}-{} is no range of tcp or udp ports",
                    range.protocol, range.from, range.to
                ));
            }
        }
        if cvm.port_mapping.address.parse::<std::net::Ipv4Addr>().is_err() {
            problems.push(format!("cvm.port_mapping.address: {:?} is no IPv4 address", cvm.port_mapping.address));
        }
        if !self.danger.allow_unauthenticated && self.auth.token_file.as_os_str().is_empty() {
            problems.push("auth.token_file: missing; without it set danger.allow_unauthenticated".to_owned());
        }
        for (key, path) in [
            ("run_path", &self.run_path),
            ("database", &self.database),
            ("image.path", &self.image.path),
            ("supervisor.sock", &self.supervisor.sock),
        ] {
            if !path.is_absolute() {
                problems.push(format!("{key}: {} is not an absolute path", path.display()));
            }
        }
        let socket = self.run_path.as_os_str().len() + "/00000000-0000-0000-0000-000000000000/vsock.sock_10000".len();
        if socket > SOCKET_PATH_MAX {
            problems.push(format!("run_path: the Unix sockets of VMs would have {socket} bytes, {SOCKET_PATH_MAX} are possible"));
        }
        problems
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const MINIMAL: &str = "run_path=\"/r\"\ndatabase=\"/d\"\n[image]\npath=\"/i\"\n[supervisor]\nsock=\"/s\"\n";

    #[test]
    fn minimal_file_needs_only_a_token() {
        let config: Config = toml::from_str(MINIMAL).unwrap();

        assert_eq!(config.address.to_string(), "127.0.0.1:9080");
        assert_eq!(config.problems().len(), 1);
        assert!(config.problems().concat().contains("auth.token_file"));
    }

    #[test]
    fn the_example_is_valid() {
        let config: Config = toml::from_str(include_str!("../vmm.example.toml")).unwrap();

        assert_eq!(config.problems(), Vec::<String>::new());
    }

    #[test]
    fn reports_all_problems_at_once() {
        let mut config: Config = toml::from_str(MINIMAL).unwrap();
        config.cvm.cid_start = 2;
        config.cvm.cid_pool_size = 0;
        config.run_path = format!("/{}", "x".repeat(90)).into();

        assert_eq!(config.problems().len(), 4);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<Config>(&format!("{MINIMAL}[cvm]\nuser=\"x\"\n")).is_err());
    }
}
