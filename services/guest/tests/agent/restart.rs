//! The real program, started again behind a socket that somebody else holds.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use dstack_guest::agent::SOCKET_MODE;
use dstack_rpc::{Client, Endpoint};

use crate::fixture::Guest;

/// As dstack-init starts it.
fn start(config: &Path, socket: &OwnedFd) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-guest-agent"));
    command.arg("--config").arg(config).stdin(Stdio::from(socket.try_clone().unwrap())).spawn().unwrap()
}

fn kill(mut agent: Child) {
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_mounted_the_socket_reaches_every_later_agent_and_waits_while_there_is_none() {
    let guest = Guest::must_start().await;
    let (path, config) = (guest.path("mounted.sock"), guest.path("agent.toml"));
    let text = format!(
        "socket_on_stdin = true\npublic_address = \"127.0.0.1:0\"\nhost_port = 0\nshare = {:?}\nlog_directory = {:?}\nsimulated_endpoint = {:?}\n",
        guest.config().share.display().to_string(),
        guest.path("log").display().to_string(),
        format!("unix:{}", guest.path("tee.sock").display()),
    );
    fs::write(&config, text).unwrap();
    let socket = OwnedFd::from(dstack_rpc::bind_unix(&path, SOCKET_MODE).unwrap());
    let file = fs::metadata(&path).unwrap();
    let client = Client::new(Endpoint::parse(&format!("unix:{}", path.display())).unwrap()).with_timeout(Duration::from_secs(30));
    let version = async || client.get("/Version").await.unwrap().status.as_u16();

    let agent = start(&config, &socket);
    assert_eq!(version().await, 200);
    kill(agent);

    // Asked while none runs, answered by the next.
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.get("/Version").await.unwrap().status.as_u16() }
    });
    while fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.ends_with(&path.display().to_string())).count() < 2 {
        tokio::task::yield_now().await;
    }
    let agent = start(&config, &socket);
    assert_eq!(asked.await.unwrap(), 200);
    kill(agent);

    let now = fs::metadata(&path).unwrap();
    assert_eq!((now.dev(), now.ino(), now.mode() & 0o777), (file.dev(), file.ino(), SOCKET_MODE));
}
