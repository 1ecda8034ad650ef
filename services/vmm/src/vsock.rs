//! How guests and host reach each other: the vsock device of a VM, the host API's listeners, calls into the guest.

use std::{path::Path, sync::Arc, time::Duration};

use dstack_api::{
    host_api::HostApiServer,
    supervisor::ProcessConfig,
    wire::{GUEST_API_PORT, VSOCK_BASE},
};
use dstack_rpc::{Client, Endpoint, GetPolicy, Limits, Listener};
use tokio::sync::watch;

use crate::{Vmm, VmmError, db::VmRow, host_api::HostApi, qemu::probe::find_program};

/// Port of the guest agent's host-facing API.
const GUEST_DEADLINE: Duration = Duration::from_secs(10);
const GUEST_ANSWER_LIMIT: usize = 1 << 20;
const DAEMON_DEADLINE: Duration = Duration::from_secs(10);
/// A guest needs one connection at a time.
const HOST_API_LIMITS: Limits = Limits {
    connections: 8,
    header_timeout: Duration::from_secs(10),
    handshake_timeout: Duration::from_secs(1),
    drain_timeout: Duration::from_millis(200),
    ..Limits::DEFAULT
};

/// Name of the vsock daemon's process beside the VM's.
pub(crate) fn process_id(vm_id: &str) -> String {
    format!("{vm_id}.vsock")
}

impl Vmm {
    /// Starts the VM's vsock daemon anew and waits for its socket.
    pub(crate) async fn start_vsock(&self, row: &VmRow) -> Result<(), VmmError> {
        let dir = self.dir(&row.id);
        let id = process_id(&row.id);
        if self.supervisor.info(&id).await?.is_some() {
            self.supervisor.stop(&id, Duration::ZERO).await?;
        }
        let command = find_program(&self.config.cvm.vhost_device_vsock);
        let process = ProcessConfig {
            id: id.clone(),
            name: format!("{} vsock", row.name),
            command: command.display().to_string(),
            args: vec![
                "--guest-cid".to_owned(),
                row.cid.to_string(),
                "--socket".to_owned(),
                dir.vhost_socket().display().to_string(),
                "--uds-path".to_owned(),
                dir.vsock_socket().display().to_string(),
            ],
            cwd: dir.root().display().to_string(),
            stdout: dir.vsock_log().display().to_string(),
            stderr: dir.vsock_log().display().to_string(),
            note: r#"{"kind":"vsock"}"#.to_owned(),
            ..ProcessConfig::default()
        };
        self.supervisor.deploy(&process).await.map_err(|error| VmmError::Vsock(error.to_string()))?;
        let socket = dir.vhost_socket();
        let appeared = async {
            while !socket.exists() {
                if let Ok(Some(info)) = self.supervisor.info(&id).await
                    && info.state.pid.is_none()
                {
                    let log = crate::serial::tail(&dir.vsock_log(), 3, 4096);
                    return Err(VmmError::Vsock(format!("{} {}: {log}", command.display(), info.state.ended)));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        let late = || VmmError::Vsock(format!("{} did not open its socket in {} s", command.display(), DAEMON_DEADLINE.as_secs()));
        tokio::time::timeout(DAEMON_DEADLINE, appeared).await.map_err(|_| late())?
    }

    /// Opens the Unix socket at which this guest's host API calls arrive; with kernel vsock one listener serves all.
    pub(crate) async fn open_host_api(self: &Arc<Self>, row: &VmRow) -> Result<(), VmmError> {
        if self.uses_kernel_vsock() {
            return Ok(());
        }
        self.close_host_api(&row.id);
        let path = self.dir(&row.id).guest_socket(self.config.cvm.host_api_port);
        let listener = open_listener(&path).await?;
        let (stop, mut stopped) = watch::channel(false);
        self.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(row.id.clone(), stop);
        let api = HostApi::for_vm(Arc::clone(self), row.id.clone());
        let router = dstack_rpc::mount(VSOCK_BASE, HostApiServer(Arc::new(api)), GetPolicy::Refuse);
        tokio::spawn(async move {
            let until = async move { drop(stopped.wait_for(|stop| *stop).await) };
            dstack_rpc::serve_with(listener, router, until, HOST_API_LIMITS).await;
        });
        Ok(())
    }

    /// Serves all guests over the kernel's vsock, where it is used. Returns at once where it is not.
    ///
    /// Errors: the port is taken.
    pub async fn serve_kernel_vsock(self: &Arc<Self>, shutdown: impl Future<Output = ()> + Send) -> Result<(), VmmError> {
        if !self.uses_kernel_vsock() {
            return Ok(());
        }
        let listener = Listener::vsock(u32::MAX, self.config.cvm.host_api_port).map_err(|error| VmmError::Vsock(error.to_string()))?;
        let api = HostApi::for_all(Arc::clone(self));
        let router = dstack_rpc::mount(VSOCK_BASE, HostApiServer(Arc::new(api)), GetPolicy::Refuse);
        dstack_rpc::serve(listener, router, shutdown).await;
        Ok(())
    }

    /// Closes the VM's host API listener.
    pub(crate) fn close_host_api(&self, id: &str) {
        let listener = self.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
        if let Some(stop) = listener {
            stop.send_replace(true);
        }
    }

    /// A client of the guest agent. Its answers are untrusted; they are bounded in size and time.
    pub(crate) fn guest(&self, row: &VmRow) -> Result<Client, VmmError> {
        let address = if self.uses_kernel_vsock() {
            format!("vsock://{}:{GUEST_API_PORT}{VSOCK_BASE}", row.cid)
        } else {
            format!("vsock-uds:{}:{GUEST_API_PORT}{VSOCK_BASE}", self.dir(&row.id).vsock_socket().display())
        };
        let endpoint = Endpoint::parse(&address).map_err(|error| VmmError::Internal(error.to_string()))?;
        Ok(Client::new(endpoint).with_timeout(GUEST_DEADLINE).with_answer_limit(GUEST_ANSWER_LIMIT))
    }
}

/// A listener of an earlier run may still hold the path for a moment.
async fn open_listener(path: &Path) -> Result<Listener, VmmError> {
    let mut attempts = 0;
    loop {
        match Listener::unix(path, 0o600).await {
            Ok(listener) => return Ok(listener),
            Err(_) if attempts < 50 => {
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(VmmError::Vsock(error.to_string())),
        }
    }
}
