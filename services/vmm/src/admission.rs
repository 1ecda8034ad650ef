//! Checks of a new VM: everything that can be refused is refused before anything is written.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use dstack_api::vmm::{NetworkingConfig, PortMapping, VmConfiguration};
use dstack_manifest::{AppCompose, AppId, ComposeHash, Runner, host_share};
use dstack_os_image::Image;
use dstack_rpc::Endpoint;

use crate::{Config, VmmError, config::PortMappingConfig, db::PortReservation};

const MAX_NAME: usize = 64;
const MAX_VCPUS: u32 = 255;
const MAX_PORTS: usize = 256;
const MAX_NICS: usize = 4;
const MAX_URLS: usize = 16;
/// The platform that our software TEE stands for.
pub(crate) const SIMULATED_TDX: &str = "dstack-tdx";

/// What protects a VM, as its owner chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TeeChoice {
    /// Intel TDX of this host.
    Tdx,
    /// The software TEE.
    Simulated,
    /// Nothing.
    None,
}

/// A configuration that makes sense on this node; the image and the free resources are checked elsewhere.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) compose_hash: ComposeHash,
    pub(crate) app_id: AppId,
    pub(crate) ports: Vec<PortReservation>,
}

/// Checks what the request says.
///
/// Errors: the first rule that is broken.
pub(crate) fn check(config: &Config, request: &VmConfiguration) -> Result<Admitted, VmmError> {
    check_name(&request.name)?;
    check_shape(config, request)?;
    let tee = tee_choice(request)?;
    if tee == TeeChoice::Simulated && config.tee_simulator.is_none() {
        return Err(VmmError::NoSimulator);
    }
    if tee == TeeChoice::Tdx && !host_has_tdx() {
        return Err(VmmError::NoTee);
    }
    let compose = AppCompose::parse(request.compose_file.clone().into_bytes())?;
    check_docker_compose(&compose)?;
    volumes(config, &compose)?;
    let app_id = match request.app_id.as_deref() {
        None | Some("") => compose.compose_hash().default_app_id(),
        Some(text) => text.parse().map_err(|error: dstack_manifest::HexError| VmmError::field("app_id", error.to_string()))?,
    };
    for (field, bytes, limit) in [
        ("encrypted_env", request.encrypted_env.len(), host_share::ENCRYPTED_ENV.max_bytes),
        ("user_config", request.user_config.len(), host_share::USER_CONFIG.max_bytes),
    ] {
        if bytes as u64 > limit {
            return Err(VmmError::field(field, format!("{bytes} bytes, guests accept {limit}")));
        }
    }
    let ports = check_ports(&config.cvm.port_mapping, &request.ports)?;
    Ok(Admitted { compose_hash: compose.compose_hash(), app_id, ports })
}

fn check_name(name: &str) -> Result<(), VmmError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_. @~!$^()".contains(&byte);
    if name.len() <= MAX_NAME && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(VmmError::BadName(dstack_service::text::clean(name, MAX_NAME)))
    }
}

fn check_shape(config: &Config, request: &VmConfiguration) -> Result<(), VmmError> {
    let cvm = &config.cvm;
    if !(1..=MAX_VCPUS).contains(&request.vcpu) {
        return Err(VmmError::field("vcpu", format!("{} is not within 1 to {MAX_VCPUS}", request.vcpu)));
    }
    if request.memory < cvm.min_memory_mib {
        return Err(VmmError::field("memory", format!("{} MiB is below the minimum of {} MiB", request.memory, cvm.min_memory_mib)));
    }
    if !(1..=cvm.max_disk_size_gib).contains(&request.disk_size) {
        return Err(VmmError::field("disk_size", format!("{} GiB is not within 1 to {} GiB", request.disk_size, cvm.max_disk_size_gib)));
    }
    let unsupported = [
        (request.hugepages, "hugepages"),
        (request.pin_numa, "pin_numa"),
        (request.gpus.as_ref().is_some_and(|gpus| !gpus.gpus.is_empty() || gpus.attach_mode == "all"), "GPU passthrough"),
        (networks(request).iter().any(|network| !matches!(network.mode.as_str(), "" | "user")), "a network mode other than user"),
    ];
    if let Some((_, what)) = unsupported.into_iter().find(|(asked, _)| *asked) {
        return Err(VmmError::NotImplemented(what));
    }
    if request.networks.len() > MAX_NICS {
        return Err(VmmError::field("networks", format!("{} cards, at most {MAX_NICS} are possible", request.networks.len())));
    }
    for (field, urls) in [("kms_urls", &request.kms_urls), ("gateway_urls", &request.gateway_urls)] {
        if urls.len() > MAX_URLS {
            return Err(VmmError::field(field, format!("{} addresses, at most {MAX_URLS}", urls.len())));
        }
        for url in urls {
            let is_http = url.starts_with("http://") || url.starts_with("https://");
            if !is_http || Endpoint::parse(url).is_err() {
                return Err(VmmError::field(field, format!("{:?} is not an http or https address", dstack_service::text::clean(url, 200))));
            }
        }
    }
    Ok(())
}

/// Network cards of a VM; none named means one in user mode.
pub(crate) fn networks(request: &VmConfiguration) -> Vec<NetworkingConfig> {
    if !request.networks.is_empty() {
        return request.networks.clone();
    }
    vec![request.networking.clone().unwrap_or_default()]
}

/// Errors: a platform that we cannot simulate.
pub(crate) fn tee_choice(request: &VmConfiguration) -> Result<TeeChoice, VmmError> {
    match request.simulated_tee.as_deref() {
        None | Some("") => Ok(if request.no_tee { TeeChoice::None } else { TeeChoice::Tdx }),
        Some(SIMULATED_TDX) => Ok(TeeChoice::Simulated),
        Some(other) => {
            Err(VmmError::field("simulated_tee", format!("{:?} is not {SIMULATED_TDX:?}", dstack_service::text::clean(other, 64))))
        }
    }
}

fn host_has_tdx() -> bool {
    fs::read_to_string("/sys/module/kvm_intel/parameters/tdx").is_ok_and(|text| text.trim() == "Y")
}

/// The software TEE must not run what claims to be a production image.
pub(crate) fn check_image(request: &VmConfiguration, image: &Image) -> Result<(), VmmError> {
    if tee_choice(request)? == TeeChoice::Simulated && !image.metadata().is_dev {
        return Err(VmmError::SimulatorNeedsDevImage(image.name().to_owned()));
    }
    Ok(())
}

/// Catches what would only fail minutes later inside the guest. The text itself is passed on as it is.
fn check_docker_compose(compose: &AppCompose) -> Result<(), VmmError> {
    let document = compose.document();
    let Some(text) = document.docker_compose_file.as_deref().filter(|_| document.runner == Runner::DockerCompose) else { return Ok(()) };
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(|error| VmmError::DockerCompose(error.to_string()))?;
    let services = value.get("services").and_then(|services| services.as_mapping());
    if services.is_none_or(|services| services.is_empty()) {
        return Err(VmmError::DockerCompose("it has no services".to_owned()));
    }
    Ok(())
}

/// Files of the verity volumes, one per distinct root, in order.
///
/// Errors: a file is missing, or volumes are not configured.
pub(crate) fn volumes(config: &Config, compose: &AppCompose) -> Result<Vec<PathBuf>, VmmError> {
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for volume in &compose.document().verity_volumes {
        let failed = |reason: String| VmmError::Volume { name: volume.source.clone(), reason };
        if config.cvm.volumes_dir.as_os_str().is_empty() {
            return Err(failed("this node has no cvm.volumes_dir".to_owned()));
        }
        let path = config.cvm.volumes_dir.join(&volume.source);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(failed("it is not a plain file".to_owned())),
            Err(error) => return Err(failed(format!("{}: {error}", path.display()))),
        }
        if seen.insert(volume.verity_root) {
            files.push(path);
        }
    }
    Ok(files)
}

fn check_ports(allowed: &PortMappingConfig, mappings: &[PortMapping]) -> Result<Vec<PortReservation>, VmmError> {
    if mappings.len() > MAX_PORTS {
        return Err(VmmError::field("ports", format!("{} mappings, at most {MAX_PORTS}", mappings.len())));
    }
    let mut ports: Vec<PortReservation> = Vec::new();
    for mapping in mappings {
        let port = reservation(allowed, mapping)?;
        if ports.contains(&port) {
            return Err(VmmError::field("ports", format!("host port {} {} is named twice", port.protocol, port.host_port)));
        }
        ports.push(port);
    }
    Ok(ports)
}

/// A mapping with its defaults filled in.
pub(crate) fn reservation(allowed: &PortMappingConfig, mapping: &PortMapping) -> Result<PortReservation, VmmError> {
    let protocol = if mapping.protocol.is_empty() { "tcp" } else { &mapping.protocol };
    if !matches!(protocol, "tcp" | "udp") {
        return Err(VmmError::field("ports", format!("protocol {:?} is neither tcp nor udp", dstack_service::text::clean(protocol, 16))));
    }
    let number = |what: &str, value: u32| {
        u16::try_from(value)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| VmmError::field("ports", format!("{what} {value} is not within 1 to 65535")))
    };
    number("vm_port", mapping.vm_port)?;
    let host_port = number("host_port", mapping.host_port)?;
    let address = if mapping.host_address.is_empty() { &allowed.address } else { &mapping.host_address };
    let address: Ipv4Addr = address
        .parse()
        .map_err(|_| VmmError::field("ports", format!("host_address {:?} is no IPv4 address", dstack_service::text::clean(address, 64))))?;
    let in_range = allowed.range.is_empty()
        || allowed.range.iter().any(|range| range.protocol == protocol && (range.from..=range.to).contains(&host_port));
    if !allowed.enabled || !in_range {
        return Err(VmmError::PortNotAllowed(format!("{protocol} {host_port}")));
    }
    Ok(PortReservation { protocol: protocol.to_owned(), address: address.to_string(), host_port })
}

/// Whether nothing on the host listens on the ports.
///
/// Errors: the first that is taken.
pub(crate) fn check_bindable(ports: &[PortReservation]) -> Result<(), VmmError> {
    for port in ports {
        let address = (port.address.as_str(), port.host_port);
        let result = if port.protocol == "udp" { UdpSocket::bind(address).map(drop) } else { TcpListener::bind(address).map(drop) };
        if let Err(error) = result {
            return Err(VmmError::PortInUse {
                protocol: port.protocol.clone(),
                address: port.address.clone(),
                port: port.host_port,
                holder: format!("another process of the host ({error})"),
            });
        }
    }
    Ok(())
}

/// Whether the host has that much memory at the moment.
///
/// Errors: it has not. A host that does not tell is believed.
pub(crate) fn check_host_memory(memory_mib: u32) -> Result<(), VmmError> {
    let Some(available) = meminfo("MemAvailable:") else { return Ok(()) };
    let asked = u64::from(memory_mib);
    if asked > available { Err(VmmError::HostMemory { asked, available }) } else { Ok(()) }
}

/// A line of `/proc/meminfo`, MiB.
pub(crate) fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}
