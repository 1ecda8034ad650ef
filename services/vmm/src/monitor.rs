//! Following the processes: adoption after a restart, ends of VMs, log sizes.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use dstack_api::{supervisor::ProcessInfo, wire::guest_event};
use dstack_service::log_file::Rotation;

use crate::{Vmm, VmmError, db::VmRow, serial, vm_dir::VmDir};

const INTERVAL: Duration = Duration::from_millis(500);
/// Rounds between two looks at log sizes.
const ROTATION_ROUNDS: u64 = 10;
const LAST_LINES: usize = 5;
const LAST_BYTES: u64 = 4096;

impl Vmm {
    /// Reconciles as soon as the supervisor answers, then follows the processes. Never returns.
    pub async fn watch(self: Arc<Self>) {
        let mut reconciled = false;
        let mut round = 0_u64;
        loop {
            let result = if reconciled { self.observe(round).await } else { self.reconcile().await };
            match result {
                Ok(()) => reconciled = true,
                Err(error) if round.is_multiple_of(60) => tracing::warn!(%error, "processes cannot be followed"),
                Err(_) => {}
            }
            round += 1;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Brings database, directories and processes into agreement after a start. Nothing that is not ours is touched,
    /// and no directory without a VM is deleted.
    ///
    /// Errors: the supervisor does not answer; call it again.
    pub async fn reconcile(self: &Arc<Self>) -> Result<(), VmmError> {
        let processes = by_id(self.supervisor.list().await?);
        let rows = self.database.vms()?;
        for row in &rows {
            let _turn = self.lock(&row.id).await;
            if row.creating || row.removing {
                tracing::info!(vm_id = row.id, "finishing an interrupted removal");
                self.erase(&row.id, Duration::ZERO).await?;
            } else if processes.get(&row.id).is_some_and(|info| info.state.pid.is_some()) {
                self.open_host_api(row).await?;
                tracing::info!(vm_id = row.id, "running VM adopted");
                if !row.started {
                    // Its shutdown was under way.
                    self.spawn_shutdown(row.clone());
                }
            }
        }
        for id in processes.values().filter(|info| self.is_ours(info)).map(|info| &info.config.id) {
            let vm_id = id.strip_suffix(".vsock").unwrap_or(id);
            if !rows.iter().any(|row| row.id == vm_id) {
                tracing::warn!(process = id, "stopping a process without VM");
                self.supervisor.stop(id, Duration::from_secs(5)).await?;
                self.supervisor.remove(id).await?;
            }
        }
        for entry in std::fs::read_dir(&self.config.run_path).into_iter().flatten().flatten() {
            if !rows.iter().any(|row| *row.id == *entry.file_name()) {
                tracing::warn!(path = %entry.path().display(), "directory without VM; it is left alone");
            }
        }
        self.observe(1).await
    }

    fn is_ours(&self, info: &ProcessInfo) -> bool {
        let of_a_vm = [r#"{"kind":"cvm""#, r#"{"kind":"vsock""#].iter().any(|kind| info.config.note.starts_with(kind));
        of_a_vm && Path::new(&info.config.cwd).parent() == Some(self.config.run_path.as_path())
    }

    async fn observe(self: &Arc<Self>, round: u64) -> Result<(), VmmError> {
        let in_a_run = |row: &VmRow| row.started_at_ms > 0 && row.ended_at_ms == 0 && !row.removing;
        let rows: Vec<VmRow> = self.database.vms()?.into_iter().filter(in_a_run).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let processes = by_id(self.supervisor.list().await?);
        for row in rows {
            if round.is_multiple_of(ROTATION_ROUNDS) {
                self.rotate_serial(&self.dir(&row.id));
            }
            if processes.get(&row.id).is_some_and(|info| info.state.pid.is_some()) {
                continue;
            }
            // A start or stop may be under way; what it leaves is looked at when its turn is over.
            let _turn = self.lock(&row.id).await;
            let Some(row) = self.database.vm(&row.id)?.filter(in_a_run) else { continue };
            let info = self.supervisor.info(&row.id).await?;
            if info.as_ref().is_none_or(|info| info.state.pid.is_none()) {
                self.ended(&row, info).await?;
            }
        }
        Ok(())
    }

    async fn ended(&self, row: &VmRow, info: Option<ProcessInfo>) -> Result<(), VmmError> {
        let reason = match info {
            Some(info) if info.state.ended.is_empty() => "ended".to_owned(),
            Some(info) => info.state.ended,
            None => "ended; the supervisor does not know the process any more".to_owned(),
        };
        let dir = self.dir(&row.id);
        let boot_error = if row.started && row.boot_progress != guest_event::BOOT_DONE {
            self.describe_failed_boot(row, &reason, &dir)
        } else {
            String::new()
        };
        tracing::info!(vm_id = row.id, reason, wanted = row.started, "VM ended");
        self.database.end_run(&row.id, &reason, &boot_error)?;
        let keep = self.config.event_buffer_size;
        self.database.add_event(&row.id, "vmm.exited", &reason, keep)?;
        self.release(&row.id, Duration::ZERO).await
    }

    /// The last words of QEMU and of the serial console: they are gone from view otherwise.
    fn describe_failed_boot(&self, row: &VmRow, reason: &str, dir: &VmDir) -> String {
        let stage = if row.boot_progress.is_empty() { "start" } else { &row.boot_progress };
        let mut text = format!("QEMU {reason} during \"{stage}\"");
        for (name, path) in [("QEMU said", dir.stderr_log()), ("last serial lines", dir.serial_log())] {
            let lines = serial::tail(&path, LAST_LINES, LAST_BYTES);
            if !lines.trim().is_empty() {
                text.push_str(&format!("; {name}: {}", dstack_service::text::clean(&lines.replace('\n', " | "), 1024)));
            }
        }
        text
    }

    /// Keeps the serial log within its size.
    pub(crate) fn rotate_serial(&self, dir: &VmDir) {
        let rotation = Rotation { max_bytes: self.config.cvm.log_max_bytes, backups: self.config.cvm.log_backups };
        if let Err(error) = rotation.apply(&dir.serial_log()) {
            tracing::warn!(path = %dir.serial_log().display(), %error, "log cannot be rotated");
        }
    }
}

fn by_id(processes: Vec<ProcessInfo>) -> HashMap<String, ProcessInfo> {
    processes.into_iter().map(|info| (info.config.id.clone(), info)).collect()
}
