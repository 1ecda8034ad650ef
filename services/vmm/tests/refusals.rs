//! Bad input: each is refused with its code, a cause and a fix, and leaves no VM, file, reservation or process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod node;

use std::{fs, net::TcpListener, os::unix::fs::FileExt as _};

use dstack_api::vmm::{Empty, Id, VmConfiguration};
use node::{IMAGE, Node, compose, configuration, free_port, port, write_image};

#[tokio::test]
async fn supervisor_main() {
    node::run_supervisor_if_asked().await;
}

async fn assert_refused(node: &Node, request: &VmConfiguration, code: &str, cause: &str) {
    let error = node.create(request).await.unwrap_err();

    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(cause), "{error:?}");
    assert!(!error.fix.is_empty(), "{error:?}");
    node.assert_empty().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_exists() {
    let node = Node::start("").await;
    write_image(&node.root().join("images/dstack-1.0.0"), false);
    let base = configuration;
    let with_volume = r#"{"manifest_version":2,"name":"x","runner":"docker-compose","docker_compose_file":"services: {a: {image: b}}","verity_volumes":[{"source":"v.img","verity_root":"0000000000000000000000000000000000000000000000000000000000000000","target":"/v"}]}"#;
    let simulated =
        |image: &str| VmConfiguration { simulated_tee: Some("dstack-tdx".to_owned()), no_tee: false, image: image.to_owned(), ..base() };
    let cases = [
        (VmConfiguration { image: "dstack-9.9.9".to_owned(), ..base() }, "image/not-found", "dstack-9.9.9"),
        (VmConfiguration { image: "../images".to_owned(), ..base() }, "image/bad-name", "../images"),
        (
            VmConfiguration { compose_file: "{\"manifest_version\": 2,\n \"name\": }".to_owned(), ..base() },
            "vmm/bad-app-compose",
            "line 2 column 10",
        ),
        (VmConfiguration { compose_file: String::new(), ..base() }, "vmm/bad-app-compose", "line 1"),
        (VmConfiguration { compose_file: compose("services:\n  web: [\n"), ..base() }, "vmm/bad-docker-compose", "line"),
        (VmConfiguration { compose_file: compose("volumes: {}\n"), ..base() }, "vmm/bad-docker-compose", "no services"),
        (VmConfiguration { compose_file: with_volume.to_owned(), ..base() }, "vmm/volume", "v.img"),
        (VmConfiguration { memory: 4097, ..base() }, "vmm/not-enough-memory", "4097 MiB of memory asked, 4096 of 4096"),
        (VmConfiguration { memory: u32::MAX, ..base() }, "vmm/not-enough-memory", "asked"),
        (VmConfiguration { memory: 511, ..base() }, "vmm/bad-field", "511 MiB is below the minimum of 512 MiB"),
        (VmConfiguration { vcpu: 0, ..base() }, "vmm/bad-field", "vcpu: 0"),
        (VmConfiguration { vcpu: 200, ..base() }, "vmm/not-enough-vcpus", "200 vCPUs asked"),
        (VmConfiguration { disk_size: 0, ..base() }, "vmm/bad-field", "disk_size"),
        (VmConfiguration { disk_size: 5000, ..base() }, "vmm/bad-field", "disk_size"),
        (VmConfiguration { name: "a;b".to_owned(), ..base() }, "vmm/bad-name", "a;b"),
        (VmConfiguration { app_id: Some("xyz".to_owned()), ..base() }, "vmm/bad-field", "app_id"),
        (VmConfiguration { encrypted_env: vec![0; 256 * 1024 + 1], ..base() }, "vmm/bad-field", "encrypted_env"),
        (VmConfiguration { kms_urls: vec!["file:///x".to_owned()], ..base() }, "vmm/bad-field", "kms_urls"),
        (VmConfiguration { ports: vec![dstack_api::vmm::PortMapping { vm_port: 0, ..port(1) }], ..base() }, "vmm/bad-field", "vm_port 0"),
        (
            VmConfiguration { ports: vec![dstack_api::vmm::PortMapping { host_address: "a,b".to_owned(), ..port(1) }], ..base() },
            "vmm/bad-field",
            "a,b",
        ),
        (VmConfiguration { ports: vec![port(4), port(4)], ..base() }, "vmm/bad-field", "twice"),
        (VmConfiguration { no_tee: false, ..base() }, "vmm/no-tee", "no TDX"),
        (VmConfiguration { simulated_tee: Some("other".to_owned()), ..base() }, "vmm/bad-field", "other"),
        (simulated("dstack-1.0.0"), "vmm/simulator-needs-dev-image", "dstack-1.0.0"),
        (simulated(IMAGE), "vmm/simulator", "tee.sock"),
        (VmConfiguration { hugepages: true, ..base() }, "rpc/not-implemented", "hugepages"),
    ];

    for (request, code, cause) in &cases {
        assert_refused(&node, request, code, cause).await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_its_holder_named() {
    let node = Node::start("").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let request = VmConfiguration { ports: vec![port(taken_port)], ..configuration() };

    assert_refused(&node, &request, "vmm/port-in-use", &format!("127.0.0.1:{taken_port} is in use by another process")).await;
    drop(taken);
    let free = free_port();
    let request = VmConfiguration { ports: vec![port(free)], stopped: true, ..configuration() };
    let first = node.create(&request).await.unwrap();
    let second = VmConfiguration { ports: vec![port(free_port()), port(free)], ..configuration() };
    let error = node.create(&second).await.unwrap_err();
    assert_eq!(error.code, "vmm/port-in-use");
    assert!(error.message.contains(&format!("VM hello ({first})")), "{error:?}");
    node.client().remove_vm(&Id { id: first }).await.unwrap();
    node.assert_empty().await;
    let id = node.create(&second).await.unwrap();
    node.client().remove_vm(&Id { id }).await.unwrap();
}

#[tokio::test]
async fn memory_counts_started_vms_together() {
    let node = Node::start("max_allocable_memory_in_mb = 1000\n").await;
    let first = node.create(&configuration()).await.unwrap();

    let error = node.create(&configuration()).await.unwrap_err();
    assert_eq!(error.message, "512 MiB of memory asked, 488 of 1000 MiB of memory left for VMs on this node");
    let second = node.create(&VmConfiguration { stopped: true, ..configuration() }).await.unwrap();
    assert_eq!(node.client().start_vm(&Id { id: second.clone() }).await.unwrap_err().code, "vmm/not-enough-memory");
    assert_eq!(node.info(&second).await.status, "stopped");
    node.client().stop_vm(&Id { id: first }).await.unwrap();
    node.client().start_vm(&Id { id: second }).await.unwrap();
}

#[tokio::test]
async fn a_tampered_image_is_refused_at_create_and_at_start() {
    let node = Node::start("").await;
    let rootfs = node.root().join("images").join(IMAGE).join("rootfs.img");
    let id = node.create(&VmConfiguration { stopped: true, ..configuration() }).await.unwrap();
    fs::File::options().write(true).open(&rootfs).unwrap().write_at(b"evil", 5000).unwrap();

    let error = node.client().start_vm(&Id { id: id.clone() }).await.unwrap_err();
    assert_eq!(error.code, "image/tampered", "{error:?}");
    let info = node.info(&id).await;
    assert_eq!(info.status, "stopped");
    assert!(info.boot_error.contains("[image/tampered]"), "{}", info.boot_error);
    assert!(node.supervisor_client().list().await.unwrap().is_empty());
    node.client().remove_vm(&Id { id }).await.unwrap();
    assert_refused(&node, &configuration(), "image/tampered", "rootfs.img").await;
    write_image(&node.root().join("images").join(IMAGE), true);
    fs::write(node.root().join("images").join(IMAGE).join("initramfs.cpio.gz"), "other").unwrap();
    assert_refused(&node, &configuration(), "image/tampered", "initramfs.cpio.gz").await;
}

#[tokio::test]
async fn tools_that_fail_leave_nothing_behind() {
    let node = Node::start("").await;
    let qemu = node.root().join("qemu");
    node::program(&node.root().join("vsock"), "#!/bin/sh\necho no such device >&2\nexit 3\n");
    assert_refused(&node, &configuration(), "vmm/vsock", "exited with code 3: no such device").await;
    fs::remove_file(node.root().join("vsock")).unwrap();
    assert_refused(&node, &configuration(), "vmm/vsock", "No such file").await;
    fs::remove_file(&qemu).unwrap();
    let node = Node::start("qemu_path = \"/nonexistent/qemu\"\n").await;
    assert_refused(&node, &configuration(), "vmm/qemu", "/nonexistent/qemu").await;
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let node = Node::start("").await;
    let client = node.client();
    let codes = [
        client.update_vm(&dstack_api::vmm::UpdateVmRequest::default()).await.unwrap_err().code,
        client.resize_vm(&dstack_api::vmm::ResizeVmRequest::default()).await.unwrap_err().code,
        client.list_gpus(&Empty {}).await.unwrap_err().code,
        client.reload_vms(&Empty {}).await.unwrap_err().code,
        client.delete_image(&Id::default()).await.unwrap_err().code,
    ];

    assert!(codes.iter().all(|code| code == "rpc/not-implemented"), "{codes:?}");
    assert_eq!(client.start_vm(&Id { id: "../../etc".to_owned() }).await.unwrap_err().code, "vmm/unknown-vm");
}
