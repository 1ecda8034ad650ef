//! `dstack ps`.

use dstack_api::{vmm::VmInfo, wire::guest_event::BOOT_DONE};
use serde::Serialize;

use super::{Vmm, short};
use crate::{
    args::VmmArgs,
    failure::Outcome,
    output::{Output, Palette, printable, table},
    ports::{AGENT_PORT, describe},
};

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    app_id: String,
    instance_id: Option<String>,
    status: String,
    boot_progress: String,
    boot_error: String,
    uptime: String,
    image: String,
    vcpu: u32,
    memory_mib: u32,
    ports: Vec<String>,
}

/// Lists the VMs.
///
/// Errors: the VMM's.
pub(crate) async fn ps(args: &VmmArgs, output: Output) -> Outcome {
    let vmm = Vmm::connect(args)?;
    let rows: Vec<Row> = vmm.vms().await?.into_iter().map(row).collect();
    output.result(&rows, |palette| render(palette, &rows))
}

fn row(vm: VmInfo) -> Row {
    let configuration = vm.configuration.unwrap_or_default();
    Row {
        ports: configuration.ports.iter().filter(|port| port.vm_port != u32::from(AGENT_PORT)).map(describe).collect(),
        name: vm.name,
        id: vm.id,
        app_id: vm.app_id,
        instance_id: vm.instance_id,
        status: vm.status,
        boot_progress: vm.boot_progress,
        boot_error: vm.boot_error,
        uptime: vm.uptime,
        image: configuration.image,
        vcpu: configuration.vcpu,
        memory_mib: configuration.memory,
    }
}

/// One word or short phrase for what the VM is doing.
fn state(row: &Row) -> String {
    match (row.status.as_str(), row.boot_error.as_str(), row.boot_progress.as_str()) {
        ("running", "", BOOT_DONE | "running" | "") => "running".to_owned(),
        ("running", "", progress) => format!("booting: {}", printable(progress, 30)),
        ("running" | "exited", error, _) if !error.is_empty() => format!("failed: {}", printable(error, 40)),
        (status, ..) => status.to_owned(),
    }
}

fn render(palette: Palette, rows: &[Row]) -> String {
    if rows.is_empty() {
        return "There are no VMs. Run a compose file with `dstack deploy -c docker-compose.yaml -n NAME`.".to_owned();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let size = format!("{} / {} MiB", row.vcpu, row.memory_mib);
            vec![
                printable(&row.name, 30),
                short(&row.id).to_owned(),
                state(row),
                row.uptime.clone(),
                short(&row.app_id).to_owned(),
                size,
                row.ports.join(", "),
            ]
        })
        .collect();
    table(palette, &["NAME", "VM", "STATE", "UPTIME", "APP", "CPU / MEMORY", "PORTS"], &cells)
}

#[cfg(test)]
mod tests {
    use dstack_api::vmm::{PortMapping, VmConfiguration};

    use super::*;

    fn vm(name: &str, status: &str, progress: &str, error: &str) -> Row {
        let port = |host_port, vm_port| PortMapping { protocol: "tcp".into(), host_port, vm_port, host_address: "127.0.0.1".into() };
        row(VmInfo {
            id: "6f1c0d3e-0000-4000-8000-000000000000".into(),
            name: name.into(),
            status: status.into(),
            boot_progress: progress.into(),
            boot_error: error.into(),
            uptime: "2m 3s".into(),
            app_id: "5c1e07aa0000000000000000000000000000beef".into(),
            configuration: Some(VmConfiguration {
                vcpu: 2,
                memory: 2048,
                ports: vec![port(8080, 80), port(39000, 8090)],
                ..Default::default()
            }),
            ..VmInfo::default()
        })
    }

    #[test]
    fn shows_what_each_vm_does() {
        let rows = [
            vm("hello", "running", "done", ""),
            vm("slow", "running", "requesting app keys", ""),
            vm("broken", "running", "requesting app keys", "KMS denied boot: compose hash is not allowed, and more words"),
            vm("off", "stopped", "", ""),
        ];

        insta::assert_snapshot!(render(Palette::PLAIN, &rows), @r"
        NAME    VM        STATE                                              UPTIME  APP       CPU / MEMORY  PORTS
        hello   6f1c0d3e  running                                            2m 3s   5c1e07aa  2 / 2048 MiB  127.0.0.1:8080 → 80
        slow    6f1c0d3e  booting: requesting app keys                       2m 3s   5c1e07aa  2 / 2048 MiB  127.0.0.1:8080 → 80
        broken  6f1c0d3e  failed: KMS denied boot: compose hash is not all…  2m 3s   5c1e07aa  2 / 2048 MiB  127.0.0.1:8080 → 80
        off     6f1c0d3e  stopped                                            2m 3s   5c1e07aa  2 / 2048 MiB  127.0.0.1:8080 → 80
        ");
    }

    #[test]
    fn scripts_read_these_fields() {
        insta::assert_json_snapshot!(vm("hello", "running", "done", ""), @r#"
        {
          "name": "hello",
          "id": "6f1c0d3e-0000-4000-8000-000000000000",
          "app_id": "5c1e07aa0000000000000000000000000000beef",
          "instance_id": null,
          "status": "running",
          "boot_progress": "done",
          "boot_error": "",
          "uptime": "2m 3s",
          "image": "",
          "vcpu": 2,
          "memory_mib": 2048,
          "ports": [
            "127.0.0.1:8080 → 80"
          ]
        }
        "#);
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(render(Palette::PLAIN, &[]).contains("dstack deploy"));
    }
}
