//! What a VM looks like to clients.

use std::collections::HashMap;

use dstack_api::{
    supervisor::{ProcessInfo, ProcessStatus},
    vmm::{NetworkInterfaceStatus, StatusRequest, StatusResponse, SvProcessInfo, VmInfo},
};
use dstack_manifest::InstanceInfo;
use dstack_service::clock::unix_millis;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{Vmm, VmmError, db::VmRow};

impl Vmm {
    /// VMs that match, oldest first.
    pub(crate) async fn status(&self, request: &StatusRequest) -> Result<StatusResponse, VmmError> {
        let matches = |row: &VmRow| {
            let by_id = request.ids.is_empty() || request.ids.contains(&row.id);
            let fields = [&row.name, &row.id, &row.app_id, &row.image];
            !row.creating && by_id && (request.keyword.is_empty() || fields.iter().any(|field| field.contains(&request.keyword)))
        };
        let rows: Vec<VmRow> = self.database.vms()?.into_iter().filter(matches).collect();
        let total = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let (skip, take) = match (request.page, request.page_size) {
            (0, _) | (_, 0) => (0, usize::MAX),
            (page, size) => ((page - 1) as usize * size as usize, size as usize),
        };
        let alive = self.alive().await?;
        let mut vms = Vec::new();
        for row in rows.iter().skip(skip).take(take) {
            let mut info = self.describe(row, alive.contains_key(&row.id), !request.brief)?;
            if let Some(configuration) = &mut info.configuration {
                // Of use to the guest only, and up to 256 KiB per VM and poll.
                configuration.encrypted_env.clear();
            }
            vms.push(info);
        }
        Ok(StatusResponse { vms, port_mapping_enabled: self.config.cvm.port_mapping.enabled, total })
    }

    /// One VM with everything.
    pub(crate) async fn info(&self, id: &str) -> Result<Option<VmInfo>, VmmError> {
        let Some(row) = self.database.vm(id)?.filter(|row| !row.creating) else { return Ok(None) };
        let alive = self.alive().await?;
        self.describe(&row, alive.contains_key(&row.id), true).map(Some)
    }

    async fn alive(&self) -> Result<HashMap<String, ProcessInfo>, VmmError> {
        let processes = self.supervisor.list().await?;
        Ok(processes.into_iter().filter(|info| info.state.pid.is_some()).map(|info| (info.config.id.clone(), info)).collect())
    }

    fn describe(&self, row: &VmRow, alive: bool, full: bool) -> Result<VmInfo, VmmError> {
        let status = match (row.removing, row.started, alive) {
            (true, ..) => "removing",
            (_, true, true) => "running",
            (_, true, false) => "exited",
            (_, false, true) => "stopping",
            (_, false, false) => "stopped",
        };
        let info: Option<InstanceInfo> = serde_json::from_str(&row.instance_info).ok();
        let instance_id = info.and_then(|info| info.instance_id).map(|id| id.to_string()).filter(|id| !id.is_empty());
        let uptime = if alive { human(unix_millis().saturating_sub(row.started_at_ms) / 1000) } else { String::new() };
        let configuration = if full { self.database.configuration(&row.id)? } else { None };
        let interfaces = configuration.as_ref().map(|configuration| interfaces(row, configuration)).unwrap_or_default();
        Ok(VmInfo {
            id: row.id.clone(),
            name: row.name.clone(),
            status: status.to_owned(),
            uptime,
            app_url: instance_id.as_deref().and_then(|id| self.app_url(id)),
            app_id: row.app_id.clone(),
            instance_id,
            configuration,
            exited_at: (row.ended_at_ms > 0).then(|| rfc3339(row.ended_at_ms)),
            boot_progress: row.boot_progress.clone(),
            boot_error: row.boot_error.clone(),
            shutdown_progress: row.shutdown_progress.clone(),
            image_version: row.image_version.clone(),
            events: self.database.events(&row.id)?,
            interfaces,
            created_at_ms: row.created_at_ms,
            started_at_ms: row.started_at_ms,
        })
    }

    fn app_url(&self, instance_id: &str) -> Option<String> {
        let gateway = &self.config.gateway;
        if gateway.base_domain.is_empty() {
            return None;
        }
        let port = if gateway.port == 443 { String::new() } else { format!(":{}", gateway.port) };
        Some(format!("https://{instance_id}-{}.{}{port}", gateway.agent_port, gateway.base_domain))
    }
}

fn interfaces(row: &VmRow, configuration: &dstack_api::vmm::VmConfiguration) -> Vec<NetworkInterfaceStatus> {
    let cards = crate::admission::networks(configuration).len();
    let describe = |index: usize| NetworkInterfaceStatus {
        mode: "user".to_owned(),
        backend: "slirp".to_owned(),
        mac: crate::launch::mac_address(&row.id, index).map(|byte| format!("{byte:02x}")).join(":"),
        bridge_name: None,
        netdev_id: Some(format!("net{index}")),
    };
    (0..cards).map(describe).collect()
}

/// A process of the supervisor as clients of the VMM see it.
pub(crate) fn describe_process(info: ProcessInfo) -> SvProcessInfo {
    let status = match &info.state.status {
        ProcessStatus::Running => "running".to_owned(),
        ProcessStatus::Stopped => "stopped".to_owned(),
        ProcessStatus::Exited(raw) => format!("exited({raw})"),
        ProcessStatus::Error(message) => format!("error({message})"),
    };
    SvProcessInfo {
        id: info.config.id,
        name: info.config.name,
        status,
        pid: info.state.pid,
        command: info.config.command,
        note: info.config.note,
    }
}

fn human(seconds: u64) -> String {
    let units = [("d", seconds / 86_400), ("h", seconds / 3600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let parts: Vec<String> = units.iter().filter(|(_, count)| *count > 0).map(|(unit, count)| format!("{count}{unit}")).collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

fn rfc3339(ms: u64) -> String {
    let nanos = i128::from(ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_read_well() {
        assert_eq!(human(0), "0s");
        assert_eq!(human(90_061), "1d 1h 1m 1s");
        assert_eq!(rfc3339(1_000), "1970-01-01T00:00:01Z");
    }
}
