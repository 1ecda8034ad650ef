//! `dstack info`.

use dstack_api::{
    vmm::VmInfo,
    wire::{EVIDENCE_PATH, guest_event::BOOT_DONE},
};
use dstack_manifest::ComposeHash;
use serde::Serialize;

use super::{Timeline, Vmm, agent_url, urls};
use crate::{
    args::VmArgs,
    failure::Outcome,
    output::{Output, Palette, Tone, fields, printable},
    ports::describe,
};

#[derive(Debug, Serialize)]
struct Detail {
    name: String,
    id: String,
    status: String,
    boot_progress: String,
    boot_error: String,
    uptime: String,
    /// When the VMM accepted the last start, Unix milliseconds; 0 if never.
    started_at_ms: u64,
    app_id: String,
    instance_id: Option<String>,
    compose_hash: Option<ComposeHash>,
    image: String,
    vcpu: u32,
    memory_mib: u32,
    disk_gib: u32,
    ports: Vec<String>,
    urls: Vec<String>,
    evidence_url: Option<String>,
    timeline: Timeline,
}

/// Shows one VM.
///
/// Errors: unknown VM.
pub(crate) async fn info(args: &VmArgs, output: Output) -> Outcome {
    let vmm = Vmm::connect(&args.vmm)?;
    let vm = vmm.find(&args.name).await?;
    let detail = detail(vmm.get(&vm.id).await?);
    output.result(&detail, |palette| render(palette, &detail))
}

fn detail(vm: VmInfo) -> Detail {
    let (timeline, urls, agent) = (Timeline::of(&vm), urls(&vm), agent_url(&vm));
    let configuration = vm.configuration.unwrap_or_default();
    let compose_hash = (!configuration.compose_file.is_empty()).then(|| ComposeHash::of(configuration.compose_file.as_bytes()));
    Detail {
        ports: configuration.ports.iter().map(describe).collect(),
        urls,
        evidence_url: agent.map(|url| format!("{url}{EVIDENCE_PATH}?nonce=<hex>")),
        timeline,
        compose_hash,
        name: vm.name,
        id: vm.id,
        status: vm.status,
        boot_progress: vm.boot_progress,
        boot_error: vm.boot_error,
        uptime: vm.uptime,
        started_at_ms: vm.started_at_ms,
        app_id: vm.app_id,
        instance_id: vm.instance_id,
        image: configuration.image,
        vcpu: configuration.vcpu,
        memory_mib: configuration.memory,
        disk_gib: configuration.disk_size,
    }
}

fn render(palette: Palette, detail: &Detail) -> String {
    let tone = if detail.boot_error.is_empty() { Tone::Good } else { Tone::Bad };
    let mut rows = vec![("VM", detail.id.clone()), ("app", detail.app_id.clone())];
    if let Some(instance) = detail.instance_id.as_ref().filter(|instance| !instance.is_empty()) {
        rows.push(("instance", instance.clone()));
    }
    if let Some(hash) = detail.compose_hash {
        rows.push(("compose hash", hash.to_string()));
    }
    rows.push(("image", detail.image.clone()));
    rows.push(("size", format!("{} CPUs, {} MiB memory, {} GiB disk", detail.vcpu, detail.memory_mib, detail.disk_gib)));
    if detail.status == "running" {
        rows.push(("uptime", detail.uptime.clone()));
    }
    if !matches!(detail.boot_progress.as_str(), "" | BOOT_DONE) {
        rows.push(("boot", printable(&detail.boot_progress, 60)));
    }
    if !detail.boot_error.is_empty() {
        rows.push(("error", palette.paint(Tone::Bad, &printable(&detail.boot_error, 400))));
    }
    rows.extend(detail.ports.iter().map(|port| ("port", port.clone())));
    rows.extend(detail.urls.iter().map(|url| ("URL", url.clone())));
    rows.extend(detail.evidence_url.iter().map(|url| ("evidence", url.clone())));
    let head = format!("{} is {}", palette.paint(Tone::Strong, &detail.name), palette.paint(tone, &detail.status));
    let mut text = format!("{head}\n{}", fields(palette, &rows));
    if !detail.timeline.phases.is_empty() {
        text.push_str("\n\n");
        text.push_str(&detail.timeline.render(palette));
    }
    text
}

#[cfg(test)]
mod tests {
    use dstack_api::vmm::{PortMapping, VmConfiguration};

    use super::*;

    fn running() -> VmInfo {
        let port = |host_port, vm_port| PortMapping { protocol: "tcp".into(), host_port, vm_port, host_address: "127.0.0.1".into() };
        let configuration = VmConfiguration {
            image: "dstack-dev-0.7.0".into(),
            vcpu: 2,
            memory: 2048,
            disk_size: 10,
            compose_file: "{}".into(),
            ports: vec![port(8080, 80), port(39000, 8090)],
            ..Default::default()
        };
        VmInfo {
            id: "6f1c0d3e-0000-4000-8000-000000000000".into(),
            name: "hello".into(),
            status: "running".into(),
            boot_progress: "done".into(),
            uptime: "2m 3s".into(),
            app_id: "5c1e07aa0000000000000000000000000000beef".into(),
            configuration: Some(configuration),
            ..VmInfo::default()
        }
    }

    #[test]
    fn shows_a_running_vm() {
        insta::assert_snapshot!(render(Palette::PLAIN, &detail(running())), @r"
        hello is running
          VM            6f1c0d3e-0000-4000-8000-000000000000
          app           5c1e07aa0000000000000000000000000000beef
          compose hash  44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a
          image         dstack-dev-0.7.0
          size          2 CPUs, 2048 MiB memory, 10 GiB disk
          uptime        2m 3s
          port          127.0.0.1:8080 → 80
          port          127.0.0.1:39000 → 8090
          URL           http://127.0.0.1:8080/
          evidence      http://127.0.0.1:39000/.well-known/dstack/evidence?nonce=<hex>
        ");
    }

    #[test]
    fn scripts_read_these_fields() {
        insta::assert_json_snapshot!(detail(running()), @r#"
        {
          "name": "hello",
          "id": "6f1c0d3e-0000-4000-8000-000000000000",
          "status": "running",
          "boot_progress": "done",
          "boot_error": "",
          "uptime": "2m 3s",
          "started_at_ms": 0,
          "app_id": "5c1e07aa0000000000000000000000000000beef",
          "instance_id": null,
          "compose_hash": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
          "image": "dstack-dev-0.7.0",
          "vcpu": 2,
          "memory_mib": 2048,
          "disk_gib": 10,
          "ports": [
            "127.0.0.1:8080 → 80",
            "127.0.0.1:39000 → 8090"
          ],
          "urls": [
            "http://127.0.0.1:8080/"
          ],
          "evidence_url": "http://127.0.0.1:39000/.well-known/dstack/evidence?nonce=<hex>",
          "timeline": {
            "phases": []
          }
        }
        "#);
    }
}
