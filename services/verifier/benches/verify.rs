//! Memory of the service, idle and after 1000 requests, and time of a request. Medians of five rounds.
//!
//! Run: `cargo bench -p dstack-verifier`. The service is the real program in its own process: memory is read from
//! `/proc/<pid>/status`, CPU time from `/proc/<pid>/stat`. Every request has a quote of its own. Exits with 1 above the promised 20 MiB.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

#[path = "../tests/testbed/mod.rs"]
mod testbed;

use std::{
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use dstack_rpc::{Client, Endpoint};
use testbed::{Bed, Image, Web};

const ROUNDS: u8 = 5;
const REQUESTS: u8 = 200;
const PROMISED_KIB: u64 = 20 << 10;

/// The program, stopped with its owner.
struct Program {
    child: Child,
    client: Client,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(bed: &Bed, pccs: &Web) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (config, ready) = (bed.dir.path().join("verifier.toml"), bed.dir.path().join("ready"));
        let file = dstack_verifier::config::ConfigFile { port, ready_file: Some(ready.clone()), ..bed.settings(pccs, None) };
        std::fs::write(&config, toml::to_string(&file).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-verifier"));
        let child = command.arg("--config").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        while !ready.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { child, client: Client::new(Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap()) }
    }

    /// A line of `/proc/<pid>/status`, in KiB.
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    async fn verify(&self, request: &str) -> Duration {
        let began = Instant::now();
        let answer = self.client.request(http::Method::POST, "/verify", http::HeaderMap::new(), request.into()).await.unwrap();
        let elapsed = began.elapsed();
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.contains("\"is_valid\":true,"), "{text}");
        elapsed
    }
}

fn median<T: Ord + Copy>(values: &mut [T]) -> T {
    values.sort();
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let bed = Bed::at(now);
    let (pccs, image) = (Web::pccs(bed.collateral_at(now)).await, Image::documented());
    let program = Program::start(&bed, &pccs);
    let idle = program.memory("VmRSS");
    let (mut medians, mut cpus) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let report_data = |number| {
            let mut data = [round; 64];
            data[0] = number;
            data
        };
        let requests: Vec<String> = (0..REQUESTS).map(|number| bed.request(&image, report_data(number)).to_string()).collect();
        let (cpu, mut elapsed) = (program.cpu(), Vec::new());
        for request in &requests {
            elapsed.push(program.verify(request).await);
        }
        medians.push(median(&mut elapsed));
        cpus.push((program.cpu() - cpu) / u32::from(REQUESTS));
    }
    let (after, peak) = (program.memory("VmRSS"), program.memory("VmHWM"));

    println!("POST /verify, medians of {ROUNDS} rounds of {REQUESTS} requests, collateral cached, one client");
    println!("  p50 {:>8.2?} elapsed, {:>8.2?} CPU of the service", median(&mut medians), median(&mut cpus));
    println!("  resident: {idle} KiB idle, {after} KiB after {} requests, {peak} KiB at most", u32::from(ROUNDS) * u32::from(REQUESTS));
    if idle.max(after) > PROMISED_KIB {
        println!("above the promised {PROMISED_KIB} KiB");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
