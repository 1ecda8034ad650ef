//! Create, start, stop, shut down, remove. Each holds the VM's lock; what fails half way is undone.

use std::{sync::Arc, time::Duration};

use dstack_api::{guest_api::GuestApiClient, vmm::VmConfiguration};

use crate::{
    Vmm, VmmError, admission,
    db::{NewVm, VmRow},
    images, qemu, vsock,
};

const POLL: Duration = Duration::from_millis(100);
/// A guest whose boot failed gets this long to power itself off before a new start ends it.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);

impl Vmm {
    /// Checks, reserves, writes and, unless `stopped`, starts a VM. Returns its id.
    ///
    /// Errors: whatever is wrong; then no VM, file, reservation or process is left.
    pub(crate) async fn create(self: &Arc<Self>, configuration: VmConfiguration) -> Result<String, VmmError> {
        let admitted = admission::check(&self.config, &configuration)?;
        let image = images::load_verified(&self.images, &self.database, &configuration.image).await?;
        admission::check_image(&configuration, &image)?;
        admission::check_bindable(&admitted.ports)?;
        if !configuration.stopped {
            admission::check_host_memory(configuration.memory)?;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let _turn = self.lock(&id).await;
        let new = NewVm {
            id: &id,
            app_id: &admitted.app_id.to_string(),
            compose_hash: &admitted.compose_hash.to_string(),
            image_version: &image.metadata().version,
            configuration: &configuration,
            ports: &admitted.ports,
        };
        self.database.insert_vm(&new, &self.limits)?;
        if let Err(error) = self.make(&id, &configuration).await {
            if let Err(left) = self.erase(&id, Duration::ZERO).await {
                tracing::error!(vm_id = id, error = %left, "a failed creation is not undone yet");
            }
            return Err(error);
        }
        tracing::info!(vm_id = id, app_id = %admitted.app_id, compose_hash = %admitted.compose_hash, "VM created");
        Ok(id)
    }

    async fn make(self: &Arc<Self>, id: &str, configuration: &VmConfiguration) -> Result<(), VmmError> {
        self.dir(id).create(configuration.disk_size)?;
        if !configuration.stopped {
            self.start_locked(&self.row(id)?).await?;
        }
        self.database.finish_creation(id)
    }

    /// Starts a VM; one that runs is left alone.
    pub(crate) async fn start(self: &Arc<Self>, id: &str) -> Result<(), VmmError> {
        let _turn = self.lock(id).await;
        let row = self.row(id)?;
        if row.removing {
            return Err(VmmError::Removing(row.id));
        }
        if self.is_running(&row.id).await? {
            if row.boot_error.is_empty() {
                return self.database.set_started(&row.id, true);
            }
            // Its boot failed and it is powering itself off; what remains of that run must not pass for the new one.
            self.gone_within(&row, POWER_OFF_GRACE).await?;
            self.release(&row.id, self.stop_grace()).await?;
        }
        self.start_locked(&row).await
    }

    async fn start_locked(self: &Arc<Self>, row: &VmRow) -> Result<(), VmmError> {
        self.database.begin_run(&row.id, &self.limits)?;
        let Err(error) = self.launch(row).await else { return Ok(()) };
        if let Err(left) = self.release(&row.id, Duration::ZERO).await {
            tracing::warn!(vm_id = row.id, error = %left, "processes of a failed start may be left");
        }
        let told = dstack_api::RpcError::from_user_facing(&error);
        self.database.set_started(&row.id, false)?;
        self.database.end_run(&row.id, "could not be started", &format!("{} [{}]", told.message, told.code))?;
        Err(error)
    }

    /// Ends a VM without asking the guest.
    pub(crate) async fn stop(&self, id: &str) -> Result<(), VmmError> {
        let _turn = self.lock(id).await;
        let row = self.row(id)?;
        self.database.set_started(&row.id, false)?;
        self.release(&row.id, self.stop_grace()).await?;
        self.end(&row, "stopped")
    }

    /// Asks the guest to shut down and sees to it that it does; returns once that has begun.
    pub(crate) async fn shut_down(self: &Arc<Self>, id: &str) -> Result<(), VmmError> {
        let row = self.row(id)?;
        if !self.is_running(&row.id).await? {
            return Err(VmmError::NotRunning(row.id));
        }
        self.database.set_started(&row.id, false)?;
        self.spawn_shutdown(row);
        Ok(())
    }

    /// Sees a shutdown through in the background.
    pub(crate) fn spawn_shutdown(self: &Arc<Self>, row: VmRow) {
        let vmm = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = vmm.shutdown_ladder(&row).await {
                tracing::error!(vm_id = row.id, %error, "shutdown not completed");
            }
        });
    }

    /// Guest agent, power button, SIGTERM, SIGKILL, each with its deadline.
    async fn shutdown_ladder(&self, row: &VmRow) -> Result<(), VmmError> {
        let cvm = &self.config.cvm;
        self.database.set_shutdown_progress(&row.id, "asking the guest")?;
        let asked = GuestApiClient(self.guest(row)?).shutdown(&dstack_api::guest_api::Empty {}).await;
        match asked {
            Ok(_) if self.ends_within(row, Duration::from_secs(cvm.shutdown_guest_seconds)).await? => return Ok(()),
            Ok(_) => tracing::warn!(vm_id = row.id, "guest did not shut down in time"),
            Err(error) => {
                tracing::warn!(vm_id = row.id, error = dstack_service::text::clean(&error.message, 200), "guest agent not reached")
            }
        }
        if !self.is_same_run(row).await? {
            return Ok(());
        }
        self.database.set_shutdown_progress(&row.id, "pressing the power button")?;
        match qemu::qmp::system_powerdown(&self.dir(&row.id).qmp_socket()).await {
            Ok(()) if self.ends_within(row, Duration::from_secs(cvm.shutdown_acpi_seconds)).await? => return Ok(()),
            Ok(()) => tracing::warn!(vm_id = row.id, "guest ignores the power button"),
            Err(error) => tracing::warn!(vm_id = row.id, %error, "QMP not reached"),
        }
        let _turn = self.lock(&row.id).await;
        if !self.is_same_run(row).await? {
            return Ok(());
        }
        self.database.set_shutdown_progress(&row.id, "terminating")?;
        self.release(&row.id, self.stop_grace()).await?;
        self.end(row, "terminated, since the guest did not shut down")
    }

    /// Removes a VM and all that belongs to it.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), VmmError> {
        let _turn = self.lock(id).await;
        let row = self.row(id)?;
        self.database.set_removing(&row.id)?;
        self.erase(&row.id, self.stop_grace()).await?;
        tracing::info!(vm_id = row.id, "VM removed");
        Ok(())
    }

    /// Processes, TD, directory, then the row with its reservations; what cannot be done now is done at the next start.
    pub(crate) async fn erase(&self, id: &str, grace: Duration) -> Result<(), VmmError> {
        self.release(id, grace).await?;
        if let Err(error) = self.delete_td(id).await {
            // Its registers die with it sooner or later; a VM must not stay because of that.
            tracing::warn!(vm_id = id, %error, "TD not deleted");
        }
        let dir = self.dir(id);
        tokio::task::spawn_blocking(move || dir.remove()).await.map_err(|error| VmmError::Internal(error.to_string()))??;
        self.database.delete_vm(id)
    }

    /// Ends QEMU and the vsock daemon, makes the supervisor forget them, closes the host API.
    pub(crate) async fn release(&self, id: &str, grace: Duration) -> Result<(), VmmError> {
        for (process, grace) in [(id.to_owned(), grace), (vsock::process_id(id), Duration::ZERO)] {
            if self.supervisor.info(&process).await?.is_some() {
                self.supervisor.stop(&process, grace).await?;
                self.supervisor.remove(&process).await?;
            }
        }
        self.close_host_api(id);
        Ok(())
    }

    /// Records the end of a run, once.
    pub(crate) fn end(&self, row: &VmRow, reason: &str) -> Result<(), VmmError> {
        if row.started_at_ms > 0 { self.database.end_run(&row.id, reason, "") } else { Ok(()) }
    }

    pub(crate) async fn is_running(&self, id: &str) -> Result<bool, VmmError> {
        Ok(self.supervisor.info(id).await?.is_some_and(|info| info.state.pid.is_some()))
    }

    fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.config.cvm.stop_grace_seconds)
    }

    async fn is_same_run(&self, row: &VmRow) -> Result<bool, VmmError> {
        let now = self.database.vm(&row.id)?;
        let same = now.is_some_and(|now| now.started_at_ms == row.started_at_ms && !now.removing && !now.started && now.ended_at_ms == 0);
        Ok(same && self.is_running(&row.id).await?)
    }

    async fn gone_within(&self, row: &VmRow, deadline: Duration) -> Result<(), VmmError> {
        let gone = async {
            while self.is_running(&row.id).await? {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(deadline, gone).await.unwrap_or(Ok(()))
    }

    async fn ends_within(&self, row: &VmRow, deadline: Duration) -> Result<bool, VmmError> {
        let ended = async {
            while self.is_same_run(row).await? {
                tokio::time::sleep(POLL).await;
            }
            Ok::<(), VmmError>(())
        };
        match tokio::time::timeout(deadline, ended).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}
