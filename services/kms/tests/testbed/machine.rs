//! Machines in a software TD, for KMSs that have evidence of their own.

use std::{path::PathBuf, sync::Arc};

use dstack_api::tee_simulator::LaunchTd;
use dstack_attester::{Attester, SimulatedDevice};
use dstack_event_log::{EventVersion, names};
use dstack_kms::config::{ConfigFile, Sealing, SealingProvider, TeeConfig};
use dstack_rpc::Listener;
use dstack_tee_simulator::{Registers, TdRecord, TdStore, device_of};
use dstack_testkit::{software_td::quote_body, software_tee::Running};
use sha2::{Digest as _, Sha256};

use super::{Guest, Stack};

/// One machine that booted a KMS's VM.
pub struct Machine {
    pub name: String,
    pub endpoint: String,
    /// What policies must allow, hex.
    pub mr_aggregated: String,
    pub sys_config: PathBuf,
    pub runtime_log: PathBuf,
    _device: Running,
}

impl Stack {
    /// Boots a KMS's VM. All of one stack measure the same.
    pub async fn machine(&self, name: &str) -> Machine {
        self.machine_of(name, Guest::new(0xaa)).await
    }

    /// Boots a VM of this identity.
    pub async fn machine_of(&self, name: &str, identity: Guest) -> Machine {
        let body = quote_body(&identity.compose_hash, &[], [0; 64]);
        let [rtmr0, rtmr1, rtmr2, _] = body.rtmr;
        let launch = LaunchTd {
            image_dir: String::new(),
            vm_config: identity.vm_config_text(),
            mr_config_id: body.mr_config_id.to_vec(),
            listen: String::new(),
            cid: 3,
        };
        let registers = Registers { mrtd: body.mrtd, rtmr: [rtmr0, rtmr1, rtmr2, [0; 48]] };
        let store = Arc::new(TdStore::open(&self.path(&format!("{name}-td"))).unwrap());
        store.put("kms", TdRecord { launch, registers, boot_event_log: "[]".into() }).await.unwrap();
        let socket = self.path(&format!("{name}.sock"));
        let listener = Listener::unix(&socket, 0o600).await.unwrap();
        let router = device_of(Arc::clone(&store), Arc::clone(&self.vendor), "kms");
        let device = Running::start(|stopped| dstack_rpc::serve(listener, router, async { drop(stopped.await) }));
        let endpoint = format!("unix:{}", socket.display());
        let runtime_log = self.path(&format!("{name}-log"));
        let (at, log) = (endpoint.clone(), runtime_log.clone());
        tokio::task::spawn_blocking(move || measure_boot(&at, &log, &identity)).await.unwrap();
        let sys_config = self.path(&format!("{name}-sys-config.json"));
        let text = serde_json::json!({ "vm_config": Guest::new(0xaa).vm_config_text() }).to_string();
        std::fs::write(&sys_config, text).unwrap();
        let registers = store.get("kms").await.unwrap().registers;
        let parts: [&[u8]; 4] = [&registers.mrtd, &registers.rtmr.concat(), &body.mr_config_id, &[0; 96]];
        let mr_aggregated = hex::encode(Sha256::digest(parts.concat()));
        Machine { name: name.to_owned(), endpoint, mr_aggregated, sys_config, runtime_log, _device: device }
    }

    /// Settings of a KMS on `machine`, with its keys sealed there.
    pub fn settings_on(&self, machine: &Machine) -> ConfigFile {
        let mut file = self.settings();
        file.cert_dir = self.path(&format!("{}-kms", machine.name));
        file.tee = TeeConfig { sys_config: Some(machine.sys_config.clone()), runtime_log: machine.runtime_log.clone() };
        file.sealing = Sealing { provider: Some(SealingProvider::SoftwareTee), ..Sealing::default() };
        file.danger.run_without_tee = false;
        file.danger.simulated_tee = Some(machine.endpoint.clone());
        file
    }
}

fn measure_boot(endpoint: &str, log: &std::path::Path, identity: &Guest) {
    let device = SimulatedDevice::connect(endpoint).unwrap();
    let attester = Attester::with_device(Box::new(device), log).unwrap();
    let events: [(&str, &[u8]); 5] = [
        (names::SYSTEM_PREPARING, b""),
        (names::APP_ID, identity.app_id.as_bytes()),
        (names::COMPOSE_HASH, identity.compose_hash.as_bytes()),
        (names::INSTANCE_ID, identity.instance_id.as_bytes()),
        (names::BOOT_MR_DONE, b""),
    ];
    for (name, payload) in events {
        attester.extend_runtime_event(name, payload, EventVersion::V1).unwrap();
    }
}
