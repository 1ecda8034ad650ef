//! The real program in its own process.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use dstack_api::kms::KmsClient;
use dstack_kms::config::ConfigFile;
use dstack_ra_tls::tls;
use dstack_rpc::{Client, Endpoint};
use nix::{time::ClockId, unistd::Pid};

use super::Stack;

pub struct Program {
    process: Child,
    pub url: String,
    pub log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(stack: &Stack, settings: &ConfigFile) -> Command {
    std::fs::write(stack.path("kms.toml"), toml::to_string(settings).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-kms"));
    command.arg("--config").arg(stack.path("kms.toml"));
    command
}

/// Runs the program to its end.
pub fn run(stack: &Stack, settings: &ConfigFile, arguments: &[&str]) -> Output {
    command(stack, settings).args(arguments).output().unwrap()
}

impl Program {
    /// Starts the program on a port that was free a moment ago, and waits until it serves.
    pub fn start(stack: &Stack) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (ready, log) = (stack.path("ready"), stack.path("kms.log"));
        // An earlier program's.
        let _ = std::fs::remove_file(&ready);
        let mut settings = stack.settings();
        settings.listen.set_port(port);
        settings.ready_file = Some(ready.clone());
        let process = command(stack, &settings).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut program = Self { process, url: format!("https://127.0.0.1:{port}/prpc"), log };
        let started = Instant::now();
        while !ready.exists() {
            assert!(program.process.try_wait().unwrap().is_none(), "the service ended by itself");
            assert!(started.elapsed() < Duration::from_secs(60), "the service does not become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        program
    }

    /// User and system time of the process so far.
    pub fn cpu(&self) -> Duration {
        let process = Pid::from_raw(self.process.id().try_into().unwrap());
        ClockId::pid_cpu_clock_id(process).and_then(|clock| clock.now()).unwrap().into()
    }

    /// Memory of the process that is in RAM.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.process.id())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    pub fn anonymous(&self) -> KmsClient<Client> {
        KmsClient(Client::new(Endpoint::parse(&self.url).unwrap()).with_tls(tls::danger_unverified_client().unwrap()))
    }

    /// Asks the process to end and waits for it.
    pub fn must_end_gracefully(mut self) {
        let killed = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(self.process.wait().unwrap().success());
    }
}
