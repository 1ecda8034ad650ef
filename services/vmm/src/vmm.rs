//! The VMM as one value.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use dstack_os_image::ImageStore;
use dstack_rpc::{Endpoint, SupervisorClient};
use tokio::sync::{OnceCell, watch};

use crate::{
    Config, Probed, VmmError, admission,
    config::VsockChoice,
    db::{Database, Limits, VmRow},
    probe_accelerator, probe_version,
    qemu::probe::find_program,
    vm_dir::VmDir,
};

/// All VMs of one node.
#[derive(Debug)]
pub struct Vmm {
    pub(crate) config: Config,
    pub(crate) database: Arc<Database>,
    pub(crate) supervisor: SupervisorClient,
    pub(crate) images: ImageStore,
    pub(crate) qemu: PathBuf,
    pub(crate) limits: Limits,
    /// Control client of the software TEE.
    pub(crate) simulator: Option<dstack_rpc::Client>,
    qemu_version: OnceCell<String>,
    probed: OnceCell<Probed>,
    /// One operation at a time per VM.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Host API listeners of running VMs; dropping the sender ends one.
    pub(crate) listeners: Mutex<HashMap<String, watch::Sender<bool>>>,
}

impl Vmm {
    /// Opens the database. Cheap; call [`Vmm::reconcile`] once, and [`Vmm::watch`] to follow the processes.
    ///
    /// Errors: the configuration or the database cannot be used.
    pub fn open(config: Config) -> Result<Arc<Self>, VmmError> {
        let database = Arc::new(Database::open(&config.database)?);
        let simulator = match &config.tee_simulator {
            None => None,
            Some(simulator) => {
                let endpoint =
                    Endpoint::parse(&simulator.control).map_err(|error| VmmError::field("tee_simulator.control", error.to_string()))?;
                Some(dstack_rpc::Client::new(endpoint).with_timeout(std::time::Duration::from_secs(60)))
            }
        };
        Ok(Arc::new(Self {
            supervisor: SupervisorClient::new(&config.supervisor.sock)?,
            images: ImageStore::new(&config.image.path),
            qemu: find_program(&config.cvm.qemu_path),
            limits: limits(&config),
            simulator,
            database,
            config,
            qemu_version: OnceCell::new(),
            probed: OnceCell::new(),
            locks: Mutex::default(),
            listeners: Mutex::default(),
        }))
    }

    /// The accelerator, probed at the first call.
    pub async fn accelerator(&self) -> &Probed {
        self.probed
            .get_or_init(async || {
                let probed = probe_accelerator(&self.qemu, self.config.cvm.accelerator, &self.config.cvm.tcg_cpu).await;
                tracing::info!(accelerator = ?probed.accelerator, reason = probed.reason, "accelerator chosen");
                probed
            })
            .await
    }

    /// The accelerator if it is known already.
    pub(crate) fn accelerator_if_known(&self) -> Option<&Probed> {
        self.probed.get()
    }

    /// QEMU's version, asked at the first call.
    pub(crate) async fn qemu_version(&self) -> Result<&str, VmmError> {
        self.qemu_version.get_or_try_init(|| probe_version(&self.qemu)).await.map(String::as_str)
    }

    pub(crate) fn dir(&self, id: &str) -> VmDir {
        VmDir::new(&self.config.run_path, id)
    }

    /// Errors: no such VM.
    pub(crate) fn row(&self, id: &str) -> Result<VmRow, VmmError> {
        self.database.vm(id)?.ok_or_else(|| VmmError::UnknownVm(dstack_service::text::clean(id, 64)))
    }

    /// Waits for the VM's turn.
    pub(crate) async fn lock(&self, id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(id.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Whether guests reach us through the kernel's vhost-vsock.
    pub(crate) fn uses_kernel_vsock(&self) -> bool {
        match self.config.cvm.vsock {
            VsockChoice::Kernel => true,
            VsockChoice::VhostUser => false,
            VsockChoice::Auto => std::path::Path::new("/dev/vhost-vsock").exists(),
        }
    }
}

fn limits(config: &Config) -> Limits {
    let cvm = &config.cvm;
    let cpus = std::thread::available_parallelism().map_or(4, |cpus| u32::try_from(cpus.get()).unwrap_or(4));
    let host_memory = admission::meminfo("MemTotal:").and_then(|mib| u32::try_from(mib).ok()).unwrap_or(u32::MAX);
    let or = |configured: u32, automatic: u32| if configured == 0 { automatic } else { configured };
    Limits {
        cid_start: cvm.cid_start,
        cid_pool_size: cvm.cid_pool_size,
        vcpus: or(cvm.max_allocable_vcpu, (cpus * 4).max(16)),
        memory_mib: or(cvm.max_allocable_memory_in_mb, host_memory),
    }
}
