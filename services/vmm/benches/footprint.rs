//! VMM with 10 VMs defined: resident memory and time from start to ready. Fails beyond 20 MiB and 50 ms in a release build.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "bench")]

#[path = "../tests/node/mod.rs"]
mod node;

use std::{
    fs,
    process::{Child, Command},
    time::{Duration, Instant},
};

use dstack_api::vmm::{StatusRequest, VmConfiguration};
use node::{Node, configuration};

const RUNS: usize = 5;
const MAX_RESIDENT_KIB: u64 = 20 << 10;
const MAX_READY: Duration = Duration::from_millis(50);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "supervisor_main") {
        runtime.block_on(node::run_supervisor_if_asked());
        return;
    }
    runtime.block_on(measure());
}

async fn measure() {
    let mut node = Node::start("").await;
    for _ in 0..10 {
        node.create(&VmConfiguration { stopped: true, ..configuration() }).await.unwrap();
    }
    let mut resident = Vec::new();
    let mut ready = Vec::new();
    for _ in 0..RUNS {
        node.kill_vmm();
        let pid_file = node.root().join("vmm.pid");
        let _absent = fs::remove_file(&pid_file);
        let began = Instant::now();
        let mut child: Child =
            Command::new(env!("CARGO_BIN_EXE_dstack-vmm")).arg("--config").arg(node.root().join("vmm.toml")).spawn().unwrap();
        while !pid_file.exists() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        ready.push(began.elapsed());
        for _ in 0..20 {
            let status = node.client().status(&StatusRequest::default()).await.unwrap();
            assert_eq!(status.vms.len(), 10);
        }
        resident.push(resident_kib(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    resident.sort_unstable();
    ready.sort_unstable();
    let (resident, ready) = (resident[RUNS / 2], ready[RUNS / 2]);
    println!("vmm with 10 VMs: {resident} KiB resident, ready after {:.1} ms (medians of {RUNS})", ready.as_secs_f64() * 1000.0);
    if !cfg!(debug_assertions) {
        assert!(resident <= MAX_RESIDENT_KIB, "resident memory above {MAX_RESIDENT_KIB} KiB");
        assert!(ready <= MAX_READY, "not ready within {MAX_READY:?}");
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}
