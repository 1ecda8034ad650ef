//! VMs through the API, with real processes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod node;

use std::fs;

use dstack_api::{
    host_api::Notification,
    vmm::{Id, StatusRequest, VmConfiguration},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use node::{Node, configuration, free_port, port, until};

#[tokio::test]
async fn supervisor_main() {
    node::run_supervisor_if_asked().await;
}

fn id(id: &str) -> Id {
    Id { id: id.to_owned() }
}

fn notification(event: &str, payload: &str) -> Notification {
    Notification { event: event.to_owned(), payload: payload.to_owned() }
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill_process(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

#[tokio::test]
async fn a_vm_is_created_stopped_started_and_removed_without_trace() {
    let node = Node::start("").await;
    let asked = VmConfiguration { ports: vec![port(free_port())], ..configuration() };

    let vm = node.create(&asked).await.unwrap();
    let info = node.info(&vm).await;
    assert_eq!((info.status.as_str(), info.boot_progress.as_str()), ("running", "booting"));
    assert_eq!(info.configuration.unwrap().compose_file, asked.compose_file, "the bytes are kept");
    assert_eq!(info.image_version, "1.0.0");
    let serial = node.vm_dir(&vm).join("serial.log");
    until(async || fs::read_to_string(&serial).is_ok_and(|text| text.contains("-append"))).await;
    let arguments = fs::read_to_string(&serial).unwrap();
    assert!(arguments.contains("hostfwd=tcp:127.0.0.1:"), "{arguments}");
    let listed = node.client().sv_list(&dstack_api::vmm::Empty {}).await.unwrap().processes;
    assert_eq!(listed.len(), 2);

    node.client().stop_vm(&id(&vm)).await.unwrap();
    let info = node.info(&vm).await;
    assert_eq!(info.status, "stopped");
    assert!(info.exited_at.is_some());
    assert!(node.supervisor_client().list().await.unwrap().is_empty());
    node.client().start_vm(&id(&vm)).await.unwrap();
    node.client().start_vm(&id(&vm)).await.unwrap();
    assert_eq!(node.info(&vm).await.status, "running");

    node.client().remove_vm(&id(&vm)).await.unwrap();
    node.assert_empty().await;
    let again = node.create(&asked).await.unwrap();
    assert_ne!(again, vm);
    node.client().remove_vm(&id(&again)).await.unwrap();
    assert_eq!(node.client().remove_vm(&id(&again)).await.unwrap_err().code, "vmm/unknown-vm");
}

#[tokio::test]
async fn the_share_carries_the_exact_compose_and_the_vm_config() {
    let node = Node::start("").await;
    let asked = VmConfiguration { encrypted_env: vec![9; 100], user_config: "mine".to_owned(), ..configuration() };

    let vm = node.create(&asked).await.unwrap();

    let image = node.vm_dir(&vm).join("shared.img");
    let read =
        |name: &str| std::process::Command::new("mcopy").arg("-i").arg(&image).args([&format!("::{name}"), "-"]).output().unwrap().stdout;
    assert_eq!(read("app-compose.json"), asked.compose_file.as_bytes());
    assert_eq!(read(".encrypted-env"), [9; 100]);
    assert_eq!(read(".user-config"), b"mine");
    let sys_config: serde_json::Value = serde_json::from_slice(&read(".sys-config.json")).unwrap();
    assert_eq!(sys_config["host_api_url"], "vsock://2:10000/api");
    assert_eq!(sys_config["kms_urls"][0], "https://10.0.2.2:9443");
    let vm_config: serde_json::Value = serde_json::from_str(sys_config["vm_config"].as_str().unwrap()).unwrap();
    assert_eq!((vm_config["cpu_count"].as_u64(), vm_config["memory_size"].as_u64()), (Some(1), Some(512 << 20)));
    assert_eq!((vm_config["qemu_version"].as_str(), vm_config["host_share_mode"].as_str()), (Some("10.0.2"), Some("vhd")));
    assert_eq!(vm_config["os_image_hash"].as_str().unwrap().len(), 64);
    let instance: serde_json::Value = serde_json::from_slice(&read(".instance_info")).unwrap();
    assert_eq!(instance["app_id"].as_str().unwrap(), node.info(&vm).await.app_id);
}

#[tokio::test]
async fn vms_survive_kill_9_of_the_vmm_and_are_adopted() {
    let mut node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let pid = node.pid(&vm).await.unwrap();

    node.kill_vmm();
    assert!(alive(pid));
    node.start_vmm().await;

    let host = node.host_api(&vm);
    until(async || host.notify(&notification("boot.progress", "still here")).await.is_ok()).await;
    let info = node.info(&vm).await;
    assert_eq!((info.status.as_str(), info.boot_progress.as_str()), ("running", "still here"));
    assert_eq!(node.pid(&vm).await, Some(pid));
    node.client().remove_vm(&id(&vm)).await.unwrap();
    assert!(!alive(pid));
    node.assert_empty().await;
}

#[tokio::test]
async fn vms_survive_kill_9_of_the_supervisor_and_are_adopted() {
    let mut node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let pid = node.pid(&vm).await.unwrap();

    node.kill_supervisor();
    assert!(alive(pid));
    let error = node.client().status(&StatusRequest::default()).await.unwrap_err();
    assert_eq!(error.code, "supervisor/unreachable");
    node.start_supervisor().await;

    assert_eq!(node.pid(&vm).await, Some(pid));
    assert_eq!(node.info(&vm).await.status, "running");
    node.client().stop_vm(&id(&vm)).await.unwrap();
    assert!(!alive(pid));
    assert_eq!(node.info(&vm).await.status, "stopped");
}

#[tokio::test]
async fn a_vm_that_ended_while_the_vmm_was_away_is_exited() {
    let mut node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let pid = node.pid(&vm).await.unwrap();

    node.kill_vmm();
    kill_process(pid, Signal::SIGKILL);
    node.start_vmm().await;

    until(async || node.info(&vm).await.boot_error.contains("SIGKILL")).await;
    assert_eq!(node.info(&vm).await.status, "exited");
}

#[tokio::test]
async fn a_crash_during_boot_is_told_with_the_last_words() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let serial = node.vm_dir(&vm).join("serial.log");
    until(async || fs::read_to_string(&serial).is_ok_and(|text| text.contains("-append"))).await;
    fs::write(&serial, "Kernel panic - not syncing: \u{1b}[31mtest\u{1b}[0m\n").unwrap();
    node.host_api(&vm).notify(&notification("boot.progress", "mounting data disk")).await.unwrap();

    kill_process(node.pid(&vm).await.unwrap(), Signal::SIGSEGV);

    until(async || !node.info(&vm).await.boot_error.is_empty()).await;
    let info = node.info(&vm).await;
    assert_eq!(info.status, "exited");
    assert!(
        info.boot_error.starts_with("QEMU killed by SIGSEGV") && info.boot_error.contains("during \"mounting data disk\""),
        "{}",
        info.boot_error
    );
    assert!(info.boot_error.ends_with("Kernel panic - not syncing: test"), "{}", info.boot_error);
    assert!(info.events.iter().any(|event| event.event == "vmm.exited"));
    // The vsock daemon ends with it.
    until(async || node.supervisor_client().list().await.unwrap().is_empty()).await;
    node.client().start_vm(&id(&vm)).await.unwrap();
    assert_eq!(node.info(&vm).await.boot_error, "");
}

#[tokio::test]
async fn a_guest_reports_within_limits() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let host = node.host_api(&vm);

    assert_eq!(host.info(&dstack_api::host_api::Empty {}).await.unwrap().name, "dstack VMM");
    host.notify(&notification("boot.error", "no\u{1b}[2J key\n")).await.unwrap();
    host.notify(&notification("boot.progress", "done")).await.unwrap();
    host.notify(&notification("boot.timeline", &"t".repeat(16384))).await.unwrap();
    let app_id = node.info(&vm).await.app_id;
    let instance = format!(r#"{{"instance_id_seed":"{0}","instance_id":"{0}","app_id":"{app_id}"}}"#, "ab".repeat(20));
    host.notify(&notification("instance.info", &instance)).await.unwrap();
    for (event, payload) in [
        ("boot.progress", "x".repeat(4097)),
        ("a b", String::new()),
        (&*"e".repeat(65), String::new()),
        ("instance.info", "not json".to_owned()),
        ("instance.info", format!(r#"{{"app_id":"{}"}}"#, "00".repeat(20))),
    ] {
        assert_eq!(host.notify(&notification(event, &payload)).await.unwrap_err().code, "vmm/bad-field", "{event}");
    }
    let sealing = host.get_sealing_key(&dstack_api::host_api::GetSealingKeyRequest::default()).await;
    assert_eq!(sealing.unwrap_err().code, "rpc/not-implemented");

    let info = node.info(&vm).await;
    assert_eq!((info.boot_error.as_str(), info.boot_progress.as_str()), ("no [2J key ", "done"));
    assert_eq!(info.instance_id.unwrap(), "ab".repeat(20));
    let mut refused = None;
    for number in 0..200 {
        refused = host.notify(&notification("noise", &number.to_string())).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.unwrap().code, "host/too-many-notifications");
    assert!(node.info(&vm).await.events.len() <= 64);
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_ended_by_the_ladder() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let pid = node.pid(&vm).await.unwrap();

    node.client().shutdown_vm(&id(&vm)).await.unwrap();

    until(async || node.info(&vm).await.status == "stopped").await;
    assert!(!alive(pid));
    assert_eq!(node.info(&vm).await.shutdown_progress, "terminating");
    assert_eq!(node.client().shutdown_vm(&id(&vm)).await.unwrap_err().code, "vmm/not-running");
}

#[tokio::test]
async fn a_shutdown_goes_on_after_the_vmm_is_killed() {
    let mut node = Node::start("shutdown_acpi_seconds = 60\n").await;
    let vm = node.create(&configuration()).await.unwrap();
    node.kill_vmm();
    let database = rusqlite::Connection::open(node.root().join("vmm.db")).unwrap();
    database.execute("UPDATE vm SET started = 0", []).unwrap();
    drop(database);

    node.start_vmm().await;

    until(async || node.info(&vm).await.status == "stopped").await;
}

#[tokio::test]
async fn what_is_on_disk_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();

    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.root().join("vmm.db")), 0o600);
    assert_eq!(mode(&node.root().join("vmm.db-wal")), 0o600);
    assert_eq!(mode(&node.vm_dir(&vm)), 0o700);
    assert_eq!(mode(&node.vm_dir(&vm).join("vsock.sock_10000")), 0o600);
}

#[tokio::test]
async fn an_interrupted_removal_is_finished_at_the_next_start() {
    let mut node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    node.kill_vmm();
    let database = rusqlite::Connection::open(node.root().join("vmm.db")).unwrap();
    database.execute("UPDATE vm SET removing = 1", []).unwrap();
    drop(database);
    let stray = node.vm_dir("not-ours");
    fs::create_dir(&stray).unwrap();

    node.start_vmm().await;

    until(async || !node.vm_dir(&vm).exists()).await;
    until(async || node.supervisor_client().list().await.unwrap().is_empty()).await;
    assert!(stray.exists(), "a directory without VM is never deleted");
}
