//! The software TEE's control and the guest agent, both played by this test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod node;

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::Path, routing::put};
use dstack_api::{
    RpcError,
    guest_api::{self, GuestApiRpc, GuestApiServer},
    tee_simulator::LaunchTd,
    vmm::{Id, VmConfiguration},
};
use dstack_rpc::{Caller, Client, Endpoint, GetPolicy, Listener};
use node::{Node, TOKEN, configuration, until};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{UnixListener, UnixStream},
};

#[tokio::test]
async fn supervisor_main() {
    node::run_supervisor_if_asked().await;
}

type Calls = Arc<Mutex<Vec<(String, Option<LaunchTd>)>>>;

async fn simulator(node: &Node) -> Calls {
    let calls = Calls::default();
    let (launched, deleted) = (Arc::clone(&calls), Arc::clone(&calls));
    let launch = async move |Path(id): Path<String>, Json(td): Json<LaunchTd>| launched.lock().unwrap().push((id, Some(td)));
    let delete = async move |Path(id): Path<String>| deleted.lock().unwrap().push((id, None));
    let router = Router::new().route("/td/{id}", put(launch).delete(delete));
    let listener = Listener::unix(node.root().join("tee.sock"), 0o600).await.unwrap();
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    calls
}

fn simulated() -> VmConfiguration {
    VmConfiguration { simulated_tee: Some("dstack-tdx".to_owned()), no_tee: false, ..configuration() }
}

#[tokio::test]
async fn each_start_launches_a_fresh_td_bound_to_the_compose_hash() {
    let node = Node::start("").await;
    let calls = simulator(&node).await;

    let vm = node.create(&simulated()).await.unwrap();
    node.client().stop_vm(&Id { id: vm.clone() }).await.unwrap();
    node.client().start_vm(&Id { id: vm.clone() }).await.unwrap();
    node.client().remove_vm(&Id { id: vm.clone() }).await.unwrap();

    let calls = calls.lock().unwrap();
    let kinds: Vec<bool> = calls.iter().map(|(_, td)| td.is_some()).collect();
    assert_eq!(kinds, [true, true, false]);
    assert!(calls.iter().all(|(id, _)| *id == vm));
    let td = calls[0].1.as_ref().unwrap();
    let hash = dstack_manifest::ComposeHash::of(simulated().compose_file.as_bytes());
    assert_eq!(td.mr_config_id, dstack_manifest::mr_config_id_v1(&hash));
    assert_eq!(td.listen, node.vm_dir(&vm).join("vsock.sock_4050").display().to_string());
    assert!(td.image_dir.ends_with(node::IMAGE));
    assert!(td.vm_config.contains(r#""simulated_tee":"dstack-tdx""#), "{}", td.vm_config);
}

/// The guest agent; its `Shutdown` ends the process that stands for QEMU.
struct Agent(u32);

impl GuestApiRpc for Agent {
    type Caller = Caller;

    async fn info(&self, _: Caller, _: guest_api::Empty) -> Result<guest_api::GuestInfo, RpcError> {
        Ok(guest_api::GuestInfo { version: "1".to_owned(), ..guest_api::GuestInfo::default() })
    }

    async fn sys_info(&self, _: Caller, _: guest_api::Empty) -> Result<guest_api::SystemInfo, RpcError> {
        Ok(guest_api::SystemInfo { os_name: "x".repeat(2 << 20), ..guest_api::SystemInfo::default() })
    }

    async fn network_info(&self, _: Caller, _: guest_api::Empty) -> Result<guest_api::NetworkInformation, RpcError> {
        Err(RpcError::internal("\u{1b}[31mguest's own words"))
    }

    async fn list_containers(&self, _: Caller, _: guest_api::Empty) -> Result<guest_api::ListContainersResponse, RpcError> {
        Ok(guest_api::ListContainersResponse::default())
    }

    async fn shutdown(&self, _: Caller, _: guest_api::Empty) -> Result<guest_api::Empty, RpcError> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        Ok(guest_api::Empty {})
    }
}

/// Stands for vhost-device-vsock: `CONNECT 8000`, then the agent.
async fn guest(node: &Node, vm: &str) {
    let pid = node.pid(vm).await.unwrap();
    let inner = node.root().join("agent.sock");
    let listener = Listener::unix(&inner, 0o600).await.unwrap();
    let router = dstack_rpc::mount("/api", GuestApiServer(Arc::new(Agent(pid))), GetPolicy::Refuse);
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    let listener = UnixListener::bind(node.vm_dir(vm).join("vsock.sock")).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let inner = inner.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                assert_eq!(line, "CONNECT 8000\n");
                stream.write_all(b"OK 1\n").await.unwrap();
                let mut agent = UnixStream::connect(inner).await.unwrap();
                let _closed = copy_bidirectional(&mut stream, &mut agent).await;
            });
        }
    });
}

#[tokio::test]
async fn calls_into_the_guest_are_relayed_within_limits() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    guest(&node, &vm).await;
    let relay = Client::new(Endpoint::parse(&format!("{}/guest", node.address)).unwrap()).with_bearer(TOKEN);
    let relay = guest_api::ProxiedGuestApiClient(relay);
    let id = guest_api::Id { id: vm.clone() };

    assert_eq!(relay.info(&id).await.unwrap().version, "1");
    assert!(relay.list_containers(&id).await.unwrap().containers.is_empty());
    let oversized = relay.sys_info(&id).await.unwrap_err();
    assert_eq!(oversized.code, "vmm/guest-unreachable");
    assert!(oversized.message.contains("exceeds 1048576 bytes"), "{oversized:?}");
    let failed = relay.network_info(&id).await.unwrap_err();
    assert_eq!(failed.code, "vmm/guest-unreachable");
    assert!(failed.message.ends_with(" [31mguest's own words"), "{failed:?}");
    let unknown = relay.info(&guest_api::Id { id: "none".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code, "vmm/unknown-vm");
}

#[tokio::test]
async fn a_guest_that_obeys_shuts_down_by_itself() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    guest(&node, &vm).await;

    node.client().shutdown_vm(&Id { id: vm.clone() }).await.unwrap();

    until(async || node.info(&vm).await.exited_at.is_some()).await;
    let info = node.info(&vm).await;
    assert_eq!((info.status.as_str(), info.boot_error.as_str()), ("stopped", ""));
    assert_eq!(info.shutdown_progress, "asking the guest");
}
