//! `dstack-tee-simulator`: see the library's documentation.

use std::path::PathBuf;

use clap::Parser;
use dstack_tee_simulator::{Config, Daemon};

/// The software TEE. Its evidence proves nothing about hardware.
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
    dstack_service::telemetry::init("dstack-tee-simulator");
    let daemon = Daemon::open(&config).await?;
    let pid_file = Some(config.pid_file.as_path()).filter(|path| !path.as_os_str().is_empty());
    dstack_service::readiness::announce(pid_file)?;
    daemon.serve(dstack_service::shutdown_signal()).await;
    Ok(())
}
