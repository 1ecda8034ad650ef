//! From a stored VM to a running QEMU.

use std::time::{Duration, Instant};

use dstack_api::{
    RpcError,
    supervisor::ProcessConfig,
    tee_simulator::{DEVICE_PORT, LaunchTd},
    vmm::VmConfiguration,
    wire,
};
use dstack_manifest::{AppCompose, AppId, CollateralUrls, InstanceInfo, SysConfig, TdxAttestationVariant, VmConfig, mr_config_id_v1};
use dstack_os_image::Image;
use http::{HeaderMap, Method};
use sha2::{Digest as _, Sha256};

use crate::{
    LaunchPlan, Nic, NicBackend, PortForward, Tee, Vmm, VmmError, VsockDevice,
    admission::{self, TeeChoice, networks, tee_choice},
    db::VmRow,
    host_share, images,
    vm_dir::VmDir,
};

const SHARE_MODE: &str = "vhd";

impl Vmm {
    /// Prepares everything and hands QEMU to the supervisor. The caller holds the VM's lock and has recorded the start;
    /// what this leaves behind on an error is removed by [`Vmm::release`].
    pub(crate) async fn launch(self: &std::sync::Arc<Self>, row: &VmRow) -> Result<(), VmmError> {
        let began = Instant::now();
        let configuration = self.database.configuration(&row.id)?.ok_or_else(|| VmmError::UnknownVm(row.id.clone()))?;
        let image = images::load_verified(&self.images, &self.database, &configuration.image).await?;
        admission::check_image(&configuration, &image)?;
        admission::check_host_memory(configuration.memory)?;
        let compose = AppCompose::parse(configuration.compose_file.clone().into_bytes())?;
        let dir = self.dir(&row.id);
        dir.remove_stale_sockets();
        let vm_config = self.vm_config(&configuration, &compose, &image).await?;
        self.write_share(row, &configuration, &vm_config, &dir).await?;
        self.rotate_serial(&dir);
        let plan = self.plan(row, &configuration, &compose, &image, &dir).await?;
        self.open_host_api(row).await?;
        if tee_choice(&configuration)? == TeeChoice::Simulated {
            self.launch_td(row, &compose, &image, vm_config).await?;
        }
        if let VsockDevice::VhostUser { .. } = plan.vsock {
            self.start_vsock(row).await?;
        }
        let process = ProcessConfig {
            id: row.id.clone(),
            name: row.name.clone(),
            command: self.qemu.display().to_string(),
            args: plan.render(),
            cwd: dir.root().display().to_string(),
            stdout: dir.stdout_log().display().to_string(),
            stderr: dir.stderr_log().display().to_string(),
            cid: Some(row.cid),
            note: r#"{"kind":"cvm","live_for":null}"#.to_owned(),
            ..ProcessConfig::default()
        };
        self.supervisor.deploy(&process).await?;
        tracing::info!(vm_id = row.id, elapsed_ms = millis(began.elapsed()), "VM launched");
        Ok(())
    }

    /// The document that goes into evidence, as text: guest and simulator must see the same bytes.
    async fn vm_config(&self, configuration: &VmConfiguration, compose: &AppCompose, image: &Image) -> Result<String, VmmError> {
        let measurement = image.tdx_measurement()?;
        let variant = if measurement.is_some() { TdxAttestationVariant::Lite } else { TdxAttestationVariant::Legacy };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let simulated = tee_choice(configuration)? == TeeChoice::Simulated;
        let document = VmConfig {
            spec_version: 1,
            os_image_hash: Some(image.os_image_hash()),
            cpu_count: configuration.vcpu,
            memory_size: u64::from(configuration.memory) << 20,
            qemu_version: Some(self.qemu_version().await?.to_owned()),
            num_nics: count(networks(configuration).len()),
            num_verity_volumes: count(admission::volumes(&self.config, compose)?.len()),
            image: Some(image.name().to_owned()),
            host_share_mode: SHARE_MODE.to_owned(),
            ovmf_variant: image.metadata().ovmf_variant.clone(),
            tdx_attestation_variant: variant,
            tdx_measurement: measurement,
            simulated_tee: simulated.then(|| admission::SIMULATED_TDX.to_owned()),
            ..VmConfig::default()
        };
        serde_json::to_string(&document).map_err(|error| VmmError::Internal(error.to_string()))
    }

    async fn write_share(&self, row: &VmRow, configuration: &VmConfiguration, vm_config: &str, dir: &VmDir) -> Result<(), VmmError> {
        let cvm = &self.config.cvm;
        let pccs = Some(cvm.pccs_url.clone()).filter(|url| !url.is_empty());
        let or_node = |own: &Vec<String>, node: &Vec<String>| if own.is_empty() { node.clone() } else { own.clone() };
        let sys_config = SysConfig {
            kms_urls: or_node(&configuration.kms_urls, &cvm.kms_urls),
            gateway_urls: or_node(&configuration.gateway_urls, &cvm.gateway_urls),
            pccs_url: pccs.clone(),
            collateral_urls: pccs.map(|url| CollateralUrls { pccs: Some(url), amd_kds: None }),
            docker_registry: cvm.docker_registry.clone(),
            host_api_url: format!("vsock://{}:{}{}", wire::HOST_CID, cvm.host_api_port, wire::VSOCK_BASE),
            vm_config: vm_config.to_owned(),
            mr_config: None,
        };
        let to_json = |error: serde_json::Error| VmmError::Internal(error.to_string());
        let sys_config = serde_json::to_vec(&sys_config).map_err(to_json)?;
        let instance_info = if row.instance_info.is_empty() {
            let app_id: AppId = row.app_id.parse().map_err(|error: dstack_manifest::HexError| VmmError::Internal(error.to_string()))?;
            serde_json::to_vec(&InstanceInfo { app_id: Some(app_id), ..InstanceInfo::default() }).map_err(to_json)?
        } else {
            row.instance_info.clone().into_bytes()
        };
        let (path, configuration) = (dir.share(), configuration.clone());
        let task = tokio::task::spawn_blocking(move || {
            let files = host_share::Files {
                app_compose: configuration.compose_file.as_bytes(),
                sys_config: &sys_config,
                instance_info: &instance_info,
                encrypted_env: &configuration.encrypted_env,
                user_config: configuration.user_config.as_bytes(),
            };
            if let Some((name, limit)) = files.too_large() {
                return Err(VmmError::field("host share", format!("{name} exceeds the {limit} bytes that guests accept")));
            }
            host_share::write(&path, &files).map_err(VmmError::io("writing", path.clone()))
        });
        task.await.map_err(|error| VmmError::Internal(error.to_string()))?
    }

    async fn plan(
        &self,
        row: &VmRow,
        configuration: &VmConfiguration,
        compose: &AppCompose,
        image: &Image,
        dir: &VmDir,
    ) -> Result<LaunchPlan, VmmError> {
        let mut forwards = Vec::new();
        for mapping in &configuration.ports {
            let port = admission::reservation(&self.config.cvm.port_mapping, mapping)?;
            let vm_port = u16::try_from(mapping.vm_port).map_err(|_| VmmError::field("ports", "vm_port is not a port"))?;
            forwards.push(PortForward { protocol: port.protocol, address: port.address, host_port: port.host_port, vm_port });
        }
        // Only the first card has host ports.
        let nics = (0..networks(configuration).len())
            .map(|index| Nic { backend: NicBackend::User { forwards: std::mem::take(&mut forwards) }, mac: mac_address(&row.id, index) })
            .collect();
        let tee = match tee_choice(configuration)? {
            TeeChoice::Tdx => Tee::Tdx { mr_config_id: mr_config_id_v1(&compose.compose_hash()), qgs_port: self.config.cvm.qgs_port },
            TeeChoice::Simulated | TeeChoice::None => Tee::None,
        };
        let vsock = if self.uses_kernel_vsock() {
            VsockDevice::Kernel { cid: row.cid }
        } else {
            VsockDevice::VhostUser { socket: dir.vhost_socket() }
        };
        Ok(LaunchPlan {
            accelerator: self.accelerator().await.accelerator.clone(),
            tee,
            vcpus: configuration.vcpu,
            memory_mib: configuration.memory,
            firmware: image.firmware(),
            kernel: image.kernel(),
            initrd: Some(image.initrd()),
            cmdline: image.cmdline().to_owned(),
            rootfs: Some(image.rootfs()),
            data_disk: Some(dir.data_disk()),
            volumes: admission::volumes(&self.config, compose)?,
            nics,
            vsock,
            share: Some(dir.share()),
            serial_log: dir.serial_log(),
            qmp_socket: dir.qmp_socket(),
            gpus: Vec::new(),
        })
    }

    /// A fresh TD for each start: its registers begin anew, as on hardware.
    async fn launch_td(&self, row: &VmRow, compose: &AppCompose, image: &Image, vm_config: String) -> Result<(), VmmError> {
        let listen =
            if self.uses_kernel_vsock() { String::new() } else { self.dir(&row.id).guest_socket(DEVICE_PORT).display().to_string() };
        let td = LaunchTd {
            image_dir: image.dir().display().to_string(),
            vm_config,
            mr_config_id: mr_config_id_v1(&compose.compose_hash()).to_vec(),
            listen,
            cid: row.cid,
        };
        let body = serde_json::to_vec(&td).map_err(|error| VmmError::Internal(error.to_string()))?;
        self.call_simulator(Method::PUT, &row.id, body).await
    }

    /// Forgets the TD of a VM, where there is a software TEE.
    pub(crate) async fn delete_td(&self, id: &str) -> Result<(), VmmError> {
        if self.simulator.is_none() {
            return Ok(());
        }
        self.call_simulator(Method::DELETE, id, Vec::new()).await
    }

    async fn call_simulator(&self, method: Method, id: &str, body: Vec<u8>) -> Result<(), VmmError> {
        let client = self.simulator.as_ref().ok_or(VmmError::NoSimulator)?;
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))]);
        let answer = client.request(method, &format!("/td/{id}"), headers, body).await;
        let answer = answer.map_err(|error| {
            let mut error = RpcError::from_user_facing(&error);
            error.message = format!("{}: {}", client.endpoint(), error.message);
            VmmError::Simulator(error)
        })?;
        if answer.status.is_success() {
            return Ok(());
        }
        let error = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|_| RpcError::new("tee/refused", format!("HTTP {}", answer.status), "read the software TEE's log"));
        Err(VmmError::Simulator(error))
    }
}

/// Stable per VM and card, locally administered.
pub(crate) fn mac_address(vm_id: &str, index: usize) -> [u8; 6] {
    let text = if index == 0 { vm_id.to_owned() } else { format!("{vm_id}:{index}") };
    let digest = Sha256::digest(text);
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(digest) {
        *to = from;
    }
    let [first, ..] = &mut mac;
    *first = (*first & 0xfe) | 0x02;
    mac
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_stable_local_and_unicast() {
        let (first, second) = (mac_address("vm", 0), mac_address("vm", 1));

        assert_eq!(first, mac_address("vm", 0));
        assert_ne!(first, second);
        assert!([first, second].iter().all(|[byte, ..]| byte & 3 == 2));
    }
}
