//! `dstack-supervisor`: see the library's documentation.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use dstack_rpc::Listener;
use dstack_supervisor::{Config, Supervisor, router};
use tokio::sync::watch;

/// How often output files are looked at.
const ROTATION_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps processes running; controlled over a Unix socket.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file, TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Checks the configuration and ends.
    #[arg(long)]
    check_config: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: Config = dstack_service::config::load(&arguments.config)?;
    if arguments.check_config {
        return Ok(());
    }
    // A terminal that closes must not reach our processes. Fails where we lead a group already, which serves as well.
    let _already_leader = nix::unistd::setsid();
    dstack_service::telemetry::init("dstack-supervisor");
    let supervisor = Supervisor::open(&config)?;
    let listener = Listener::unix(&config.socket, 0o600).await?;
    let (quit, mut quitting) = watch::channel(false);
    let rotating = std::sync::Arc::clone(&supervisor);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ROTATION_INTERVAL).await;
            rotating.rotate_logs();
        }
    });
    let pid_file = Some(config.pid_file.as_path()).filter(|path| !path.as_os_str().is_empty());
    dstack_service::readiness::announce(pid_file)?;
    let until = async move {
        tokio::select! {
            () = dstack_service::shutdown_signal() => tracing::info!("processes keep running"),
            _ = quitting.wait_for(|quit| *quit) => tracing::info!("every process is stopped"),
        }
    };
    dstack_rpc::serve(listener, router(supervisor, quit), until).await;
    Ok(())
}
