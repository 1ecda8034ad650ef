//! The real program in its own process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use dstack_api::kms::KmsClient;
use dstack_kms::config::ConfigFile;
use dstack_ra_tls::tls;
use dstack_rpc::{Client, Endpoint};
use nix::{time::ClockId, unistd::Pid};

use super::Stack;

const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

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

/// `command` in a mount namespace with 256 KiB of disk at `directory`.
fn on_small_disk(command: &Command, directory: &Path) -> Command {
    let mut wrapped = Command::new("unshare");
    let script = "mount -t tmpfs -o size=256k none \"$0\" && exec \"$@\"";
    wrapped.args(["--mount", "sh", "-c", script]).arg(directory).arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Runs the program to its end.
pub fn run(stack: &Stack, settings: &ConfigFile, arguments: &[&str]) -> Output {
    command(stack, settings).args(arguments).output().unwrap()
}

impl Program {
    /// Starts the program on a port that was free a moment ago, and waits until it serves.
    pub fn start(stack: &Stack) -> Self {
        Self::start_with(stack, stack.settings(), None)
    }

    /// [`Self::start`] with a clock that is so far off, as libfaketime is told: `+10y`.
    pub fn start_at(stack: &Stack, offset: &str) -> Self {
        let clock = [("LD_PRELOAD", LIBFAKETIME), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        assert!(Path::new(LIBFAKETIME).exists(), "libfaketime is installed by scripts/install-deps");
        Self::start_in(stack, stack.settings(), None, &clock)
    }

    /// [`Self::start`] with other settings, and where `small_disk` is given with a disk of 256 KiB mounted there for this process only.
    pub fn start_with(stack: &Stack, settings: ConfigFile, small_disk: Option<&Path>) -> Self {
        Self::start_in(stack, settings, small_disk, &[])
    }

    fn start_in(stack: &Stack, mut settings: ConfigFile, small_disk: Option<&Path>, environment: &[(&str, &str)]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (ready, log) = (stack.path("ready"), stack.path("kms.log"));
        // An earlier program's.
        let _ = std::fs::remove_file(&ready);
        settings.listen.set_port(port);
        settings.ready_file = Some(ready.clone());
        let mut command = command(stack, &settings);
        if let Some(directory) = small_disk {
            command = on_small_disk(&command, directory);
        }
        let process = command.envs(environment.iter().copied()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut program = Self { process, url: format!("https://127.0.0.1:{port}/prpc"), log };
        let started = Instant::now();
        while !ready.exists() {
            assert!(program.process.try_wait().unwrap().is_none(), "the service ended by itself");
            assert!(started.elapsed() < Duration::from_secs(60), "the service does not become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        program
    }

    /// The program with a small disk at `name`; none where this user cannot mount.
    pub fn start_on_small_disk(stack: &Stack, name: &str) -> Option<Self> {
        let directory = stack.path(name);
        std::fs::create_dir(&directory).unwrap();
        let can_mount = on_small_disk(&Command::new("true"), &directory).status().is_ok_and(|status| status.success());
        can_mount.then(|| Self::start_with(stack, stack.settings(), Some(&directory)))
    }

    /// A path as the program sees it.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
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
