//! The three interfaces, and one listener per TD.

use std::{collections::HashMap, fs, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc, time::Duration};

use dstack_api::tee_simulator::{DEVICE_PORT, LaunchTd};
use dstack_rpc::{Limits, Listener};
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
};

use crate::{
    Config, SimulatorError, TdRecord, TdStore, Vendor, control,
    device::{self, Whose},
    pccs,
};

/// A guest that hangs must not keep a TD from being launched anew.
const DEVICE_LIMITS: Limits =
    Limits { connections: 16, header_timeout: Duration::from_secs(60), drain_timeout: Duration::from_millis(500), ..Limits::DEFAULT };

struct RunningDevice {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<TdStore>,
    vendor: Arc<Vendor>,
    kernel_vsock: bool,
    devices: Mutex<HashMap<String, RunningDevice>>,
}

impl Shared {
    pub(crate) fn can_listen(&self, request: &LaunchTd) -> Result<(), SimulatorError> {
        if request.listen.is_empty() && !self.kernel_vsock { Err(SimulatorError::NoListener) } else { Ok(()) }
    }

    /// Serves the TD's own socket, if it has one.
    pub(crate) async fn start_device(&self, vm_id: &str, record: &TdRecord) -> Result<(), SimulatorError> {
        if record.launch.listen.is_empty() {
            return Ok(());
        }
        let listener = Listener::unix(&record.launch.listen, 0o600).await?;
        let router = device::router(self.store.clone(), self.vendor.clone(), Whose::Td(vm_id.to_owned()));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _sender_gone = stopped.await;
        };
        let task = tokio::spawn(dstack_rpc::serve_with(listener, router, shutdown, DEVICE_LIMITS));
        self.devices.lock().await.insert(vm_id.to_owned(), RunningDevice { stop, task });
        Ok(())
    }

    pub(crate) async fn stop_device(&self, vm_id: &str) {
        let running = self.devices.lock().await.remove(vm_id);
        if let Some(RunningDevice { stop, task }) = running {
            drop(stop);
            let _ended = task.await;
        }
    }

    async fn stop_all(&self) {
        let ids: Vec<String> = self.devices.lock().await.keys().cloned().collect();
        for id in ids {
            self.stop_device(&id).await;
        }
    }
}

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonAddresses {
    /// Control interface.
    pub control_socket: PathBuf,
    /// Collateral service; the real port if 0 was asked for.
    pub collateral: SocketAddr,
    /// The vendor's root, PEM.
    pub root_pem: PathBuf,
}

/// The software TEE, listening.
pub struct Daemon {
    shared: Arc<Shared>,
    control: Listener,
    collateral: Listener,
    vsock: Option<Listener>,
    addresses: DaemonAddresses,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Opens state and listeners, and takes up the TDs of an earlier run.
    pub async fn open(config: &Config) -> Result<Self, SimulatorError> {
        let directory = &config.state_dir;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| SimulatorError::State {
            operation: "creating",
            path: directory.clone(),
            source,
        })?;
        let vendor = Arc::new(Vendor::open(directory, OffsetDateTime::now_utc().unix_timestamp())?);
        let store = Arc::new(TdStore::open(&directory.join("td"))?);
        let control = Listener::unix(&config.control_socket, 0o600).await?;
        let collateral = Listener::tcp(config.collateral_listen).await?;
        let vsock = config.kernel_vsock.then(|| Listener::vsock(u32::MAX, DEVICE_PORT)).transpose()?;
        let addresses = DaemonAddresses {
            control_socket: config.control_socket.clone(),
            collateral: collateral.local_addr().unwrap_or(config.collateral_listen),
            root_pem: directory.join("root.pem"),
        };
        let shared = Arc::new(Shared { store, vendor, kernel_vsock: config.kernel_vsock, devices: Mutex::default() });
        for (vm_id, record) in shared.store.all().await {
            // The VM's directory may be gone: then so is the VM, and its TD waits to be removed.
            if let Err(error) = shared.start_device(&vm_id, &record).await {
                tracing::warn!(vm_id, %error, "TD of an earlier run cannot be served");
            }
        }
        Ok(Self { shared, control, collateral, vsock, addresses })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &DaemonAddresses {
        &self.addresses
    }

    /// The vendor.
    #[must_use]
    pub fn vendor(&self) -> &Arc<Vendor> {
        &self.shared.vendor
    }

    /// Serves until `shutdown` completes.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) {
        let Self { shared, control, collateral, vsock, addresses } = self;
        tracing::warn!(collateral = %addresses.collateral, root = %addresses.root_pem.display(), "software TEE: its evidence proves nothing about hardware");
        let (stop, _) = tokio::sync::watch::channel(false);
        let until = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
            let _sender_gone = stopped.wait_for(|stop| *stop).await;
        };
        let by_cid = device::router(shared.store.clone(), shared.vendor.clone(), Whose::Cid);
        let vsock_stop = until(stop.subscribe());
        let serve_vsock = async {
            if let Some(listener) = vsock {
                dstack_rpc::serve_with(listener, by_cid, vsock_stop, DEVICE_LIMITS).await;
            }
        };
        let serve_control = dstack_rpc::serve(control, control::router(shared.clone()), until(stop.subscribe()));
        let serve_collateral = dstack_rpc::serve(collateral, pccs::router(shared.vendor.clone()), until(stop.subscribe()));
        let end = async {
            shutdown.await;
            stop.send_replace(true);
            shared.stop_all().await;
        };
        tokio::join!(serve_control, serve_collateral, serve_vsock, end);
    }
}
