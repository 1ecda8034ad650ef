//! The daemon as a process: what it starts survives it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use dstack_api::supervisor::{ProcessConfig, ProcessInfo, ProcessStatus};
use dstack_rpc::SupervisorClient;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

struct Daemon {
    child: Child,
    client: SupervisorClient,
}

impl Daemon {
    async fn start(home: &Path) -> Self {
        let config = home.join("supervisor.toml");
        let text = format!("socket = \"{0}/s.sock\"\nstate_dir = \"{0}/state\"\nlog_max_bytes = 100000\n", home.display());
        fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_dstack-supervisor")).arg("--config").arg(&config).spawn().unwrap();
        let client = SupervisorClient::new(&home.join("s.sock")).unwrap();
        until(async || client.ping().await.is_ok()).await;
        Self { child, client }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

async fn until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "condition not met in 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn shell(home: &Path, id: &str, script: &str) -> ProcessConfig {
    ProcessConfig {
        id: id.to_owned(),
        command: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        stdout: home.join(format!("{id}.out")).display().to_string(),
        ..ProcessConfig::default()
    }
}

async fn info(client: &SupervisorClient, id: &str) -> ProcessInfo {
    client.info(id).await.unwrap().unwrap()
}

/// A zombie that its new parent has not collected yet is not alive.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn processes_survive_kill_9_of_the_daemon_and_lose_no_output() {
    let home = TempDir::new().unwrap();
    let mut daemon = Daemon::start(home.path()).await;
    let gate = home.path().join("gate");
    let script = format!("echo before; while [ ! -e {} ]; do sleep 0.02; done; echo after; exec sleep 1000", gate.display());
    daemon.client.deploy(&shell(home.path(), "worker", &script)).await.unwrap();
    let pid = info(&daemon.client, "worker").await.state.pid.unwrap();

    daemon.kill();
    fs::write(&gate, "").unwrap();
    let out = home.path().join("worker.out");
    until(async || fs::read_to_string(&out).unwrap() == "before\nafter\n").await;
    let daemon = Daemon::start(home.path()).await;

    let adopted = info(&daemon.client, "worker").await;
    assert_eq!((adopted.state.status, adopted.state.pid), (ProcessStatus::Running, Some(pid)));
    assert!(daemon.client.deploy(&shell(home.path(), "worker", "true")).await.is_err(), "a running id cannot be deployed again");
    daemon.client.stop("worker", Duration::from_secs(5)).await.unwrap();
    assert!(!alive(pid));
    assert_eq!(info(&daemon.client, "worker").await.state.status, ProcessStatus::Stopped);
    daemon.client.remove("worker").await.unwrap();
    assert_eq!(fs::read_dir(home.path().join("state")).unwrap().count(), 1, "only the lock is left");
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_called_unknown() {
    let home = TempDir::new().unwrap();
    let mut daemon = Daemon::start(home.path()).await;
    daemon.client.deploy(&shell(home.path(), "short", "exec sleep 1000")).await.unwrap();
    let pid = info(&daemon.client, "short").await.state.pid.unwrap();

    daemon.kill();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let daemon = Daemon::start(home.path()).await;

    until(async || info(&daemon.client, "short").await.state.status != ProcessStatus::Running).await;
    let state = info(&daemon.client, "short").await.state;
    assert!(matches!(state.status, ProcessStatus::Error(_)), "{state:?}");
    assert!(state.ended.contains("unknown"), "{state:?}");
}

#[tokio::test]
async fn says_how_a_process_ended() {
    let home = TempDir::new().unwrap();
    let daemon = Daemon::start(home.path()).await;

    daemon.client.deploy(&shell(home.path(), "code", "exit 3")).await.unwrap();
    daemon.client.deploy(&shell(home.path(), "signal", "kill -SEGV $$")).await.unwrap();

    until(async || info(&daemon.client, "code").await.state.status == ProcessStatus::Exited(0x300)).await;
    assert_eq!(info(&daemon.client, "code").await.state.ended, "exited with code 3");
    until(async || info(&daemon.client, "signal").await.state.ended.starts_with("killed by SIGSEGV")).await;
    daemon.client.clear().await.unwrap();
    assert!(daemon.client.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_ladder_ends_with_sigkill_and_takes_the_group_along() {
    let home = TempDir::new().unwrap();
    let daemon = Daemon::start(home.path()).await;
    daemon.client.deploy(&shell(home.path(), "stubborn", "trap '' TERM; sleep 1000 & echo $!; while :; do wait; done")).await.unwrap();
    let out = home.path().join("stubborn.out");
    until(async || fs::read_to_string(&out).is_ok_and(|text| text.ends_with('\n'))).await;
    let grandchild: u32 = fs::read_to_string(&out).unwrap().trim().parse().unwrap();

    daemon.client.stop("stubborn", Duration::from_millis(200)).await.unwrap();

    assert_eq!(info(&daemon.client, "stubborn").await.state.ended, "killed by SIGKILL");
    until(async || !alive(grandchild)).await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_leaves_no_process() {
    let home = TempDir::new().unwrap();
    let daemon = Daemon::start(home.path()).await;

    let config = ProcessConfig { id: "none".to_owned(), command: "/nonexistent/program".to_owned(), ..ProcessConfig::default() };
    let error = daemon.client.deploy(&config).await.unwrap_err();

    assert!(error.to_string().contains("/nonexistent/program"), "{error}");
    assert!(daemon.client.list().await.unwrap().is_empty());
    let hostile = ProcessConfig { id: "../x".to_owned(), command: "/bin/true".to_owned(), ..ProcessConfig::default() };
    assert!(daemon.client.deploy(&hostile).await.is_err());
}

#[tokio::test]
async fn shutdown_stops_everything_and_a_second_daemon_is_refused() {
    let home = TempDir::new().unwrap();
    let mut daemon = Daemon::start(home.path()).await;
    daemon.client.deploy(&shell(home.path(), "one", "exec sleep 1000")).await.unwrap();
    let pid = info(&daemon.client, "one").await.state.pid.unwrap();

    let second =
        Command::new(env!("CARGO_BIN_EXE_dstack-supervisor")).arg("--config").arg(home.path().join("supervisor.toml")).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another supervisor uses"));
    daemon.client.shutdown().await.unwrap();

    assert!(daemon.child.wait().unwrap().success());
    assert!(!alive(pid));
}

#[tokio::test]
async fn socket_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = TempDir::new().unwrap();
    let _daemon = Daemon::start(home.path()).await;

    assert_eq!(fs::metadata(home.path().join("s.sock")).unwrap().permissions().mode() & 0o777, 0o600);
}
