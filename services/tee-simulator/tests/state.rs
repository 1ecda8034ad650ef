//! What survives a crash, and what bad requests get.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests panic on purpose")]

mod support;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dstack_api::tee_simulator::{Extend, TdState};
use http::Method;
use support::{World, call, must_launch};

/// The real program, killed when dropped.
struct Program(Child);

impl Program {
    async fn must_start(world: &World) -> Self {
        let ready = world.directory.path().join("ready");
        let _none_yet = std::fs::remove_file(&ready);
        let config = dstack_tee_simulator::Config { pid_file: ready.clone(), ..world.config() };
        let path = world.directory.path().join("tee-simulator.toml");
        std::fs::write(&path, toml_of(&config)).unwrap();
        let program = env!("CARGO_BIN_EXE_dstack-tee-simulator");
        let child = Command::new(program).arg("--config").arg(&path).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            assert!(Instant::now() < deadline, "the program did not get ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        started
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _dead_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

fn toml_of(config: &dstack_tee_simulator::Config) -> String {
    format!(
        "state_dir = {:?}\ncontrol_socket = {:?}\ncollateral_listen = {:?}\npid_file = {:?}\n",
        config.state_dir,
        config.control_socket,
        config.collateral_listen.to_string(),
        config.pid_file
    )
}

async fn must_extend(device: &Path, index: u8) -> TdState {
    let body = serde_json::to_string(&Extend { index, digest: vec![9; 48] }).unwrap();
    let (status, body) = call(device, Method::POST, "/extend", body).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn registers_and_vendor_survive_a_kill() {
    let world = World::new();
    let device = world.device_socket();
    let program = Program::must_start(&world).await;
    let control = world.config().control_socket;
    let launched = must_launch(&control, "vm1", &world.launch([3; 48])).await;
    let extended = must_extend(&device, 3).await;
    let root = std::fs::read(world.config().state_dir.join("root.pem")).unwrap();

    program.kill();
    let _program = Program::must_start(&world).await;

    let (status, body) = call(&device, Method::GET, "/td", String::new()).await;
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<TdState>(&body).unwrap(), extended);
    assert_ne!(extended.rtmr, launched.rtmr);
    assert_eq!(std::fs::read(world.config().state_dir.join("root.pem")).unwrap(), root);
    assert_ne!(must_extend(&device, 3).await.rtmr, extended.rtmr);
}

#[tokio::test]
async fn launching_again_starts_over_and_removal_ends_the_device() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    let first = must_launch(&addresses.control_socket, "vm1", &world.launch([0; 48])).await;
    must_extend(&world.device_socket(), 3).await;

    let second = must_launch(&addresses.control_socket, "vm1", &world.launch([0; 48])).await;

    assert_eq!(first, second);
    assert_eq!(call(&addresses.control_socket, Method::DELETE, "/td/vm1", String::new()).await.0, 200);
    assert!(!world.device_socket().exists());
    assert_eq!(call(&addresses.control_socket, Method::GET, "/td/vm1", String::new()).await.0, 400);
}

#[tokio::test]
async fn guests_extend_only_their_registers() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    must_launch(&addresses.control_socket, "vm1", &world.launch([0; 48])).await;

    for (index, length) in [(0_u8, 48), (1, 48), (4, 48), (3, 47), (3, 0)] {
        let body = serde_json::to_string(&Extend { index, digest: vec![1; length] }).unwrap();
        assert_eq!(call(&world.device_socket(), Method::POST, "/extend", body).await.0, 400, "{index} {length}");
    }
    let quote = "{\"report_data\":\"00\"}".to_owned();
    assert_eq!(call(&world.device_socket(), Method::POST, "/quote", quote).await.0, 400);
}

#[tokio::test]
async fn refuses_what_it_cannot_measure() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    let launch = |change: &dyn Fn(&mut dstack_api::tee_simulator::LaunchTd)| {
        let mut request = world.launch([0; 48]);
        change(&mut request);
        serde_json::to_string(&request).unwrap()
    };
    let cases = [
        ("no-image", launch(&|request| request.image_dir = "/nonexistent".to_owned())),
        ("no-json", launch(&|request| request.vm_config = "{".to_owned())),
        ("short-id", launch(&|request| request.mr_config_id = vec![0; 47])),
        ("no-listener", launch(&|request| request.listen = String::new())),
        ("bad%20id", launch(&|_| ())),
    ];
    for (vm_id, body) in cases {
        let (status, body) = call(&addresses.control_socket, Method::PUT, &format!("/td/{vm_id}"), body).await;
        assert_eq!(status, 400, "{vm_id}: {body}");
        let error: dstack_api::RpcError = serde_json::from_str(&body).unwrap();
        assert!(error.code.starts_with("tee-simulator/") && !error.fix.is_empty(), "{vm_id}: {body}");
    }
    assert!(!world.device_socket().exists());
}

#[tokio::test]
async fn collateral_of_other_platforms_is_not_found() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    let client = dstack_rpc::Client::new(dstack_rpc::Endpoint::parse(&format!("http://{}", addresses.collateral)).unwrap());

    for path in ["/tdx/certification/v4/tcb?fmspc=00806f050000", "/sgx/certification/v4/pckcrl?ca=processor", "/sgx/certification/v4/tcb"] {
        assert_eq!(client.get(path).await.unwrap().status, 404, "{path}");
    }
}

#[test]
fn example_configuration_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tee-simulator.example.toml");

    let config: dstack_tee_simulator::Config = dstack_service::config::load(path).unwrap();

    assert!(!config.kernel_vsock);
}
