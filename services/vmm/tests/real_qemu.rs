//! Real QEMU under TCG with the real vsock daemon; the firmware halts at once.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod node;

use std::{path::PathBuf, time::Duration};

use dstack_api::vmm::{Id, VmConfiguration};
use node::{Node, configuration, free_port, port, until};

#[tokio::test]
async fn supervisor_main() {
    node::run_supervisor_if_asked().await;
}

fn vsock_daemon() -> Option<PathBuf> {
    let tools = PathBuf::from(std::env::var_os("HOME")?).join(".cache/dstack/tools/bin");
    let path = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&path).chain([tools]).map(|directory| directory.join("vhost-device-vsock"));
    programs.find(|program| program.is_file())
}

#[tokio::test]
async fn the_rendered_command_line_runs_survives_us_and_is_removed() {
    let Some(daemon) = vsock_daemon() else {
        eprintln!("not run: vhost-device-vsock is not installed");
        return;
    };
    let extra = format!("qemu_path = \"qemu-system-x86_64\"\nvhost_device_vsock = \"{}\"\n", daemon.display());
    let mut node = Node::start(&extra).await;
    let host_port = free_port();
    let vm = node.create(&VmConfiguration { ports: vec![port(host_port)], ..configuration() }).await.unwrap();
    let pid = node.pid(&vm).await.unwrap();
    let monitor = node.vm_dir(&vm).join("qmp.sock");
    until(async || tokio::net::UnixStream::connect(&monitor).await.is_ok()).await;
    until(async || std::net::TcpStream::connect(("127.0.0.1", host_port)).is_ok()).await;
    // QEMU that disliked an option would have ended by now.
    let info = node.info(&vm).await;
    assert_eq!(info.status, "running", "{}", info.boot_error);

    node.kill_vmm();
    node.kill_supervisor();
    node.start_supervisor().await;
    node.start_vmm().await;
    assert_eq!(node.pid(&vm).await, Some(pid), "{:?}", node.info(&vm).await);
    assert_eq!(node.info(&vm).await.status, "running");

    // Agent: nobody. Power button: pressed, ignored. SIGTERM: QEMU ends.
    node.client().shutdown_vm(&Id { id: vm.clone() }).await.unwrap();
    until(async || node.info(&vm).await.status == "stopped").await;
    node.client().remove_vm(&Id { id: vm }).await.unwrap();
    node.assert_empty().await;
    tokio::time::timeout(Duration::from_secs(5), async { while std::net::TcpStream::connect(("127.0.0.1", host_port)).is_ok() {} })
        .await
        .unwrap();
}
