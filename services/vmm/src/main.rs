//! `dstack-vmm`: see the library's documentation.

use std::{path::PathBuf, sync::Arc};

use clap::Parser;
use dstack_rpc::Listener;
use dstack_vmm::{Config, Vmm, router};

/// Runs confidential VMs on this host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file, TOML.
    #[arg(long, short)]
    config: PathBuf,
    /// Checks the configuration, prints it with its defaults and ends.
    #[arg(long)]
    check_config: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: Config = dstack_service::config::load(&arguments.config)?;
    let problems = config.problems();
    anyhow::ensure!(problems.is_empty(), "{}:\n  {}", arguments.config.display(), problems.join("\n  "));
    if arguments.check_config {
        use std::io::Write as _;
        std::io::stdout().write_all(toml::to_string_pretty(&config)?.as_bytes())?;
        return Ok(());
    }
    dstack_service::telemetry::init("dstack-vmm");
    if config.danger.allow_unauthenticated {
        tracing::warn!("danger.allow_unauthenticated: every local user and every guest can control all VMs");
    }
    let (address, pid_file) = (config.address, config.pid_file.clone());
    let vmm = Vmm::open(config)?;
    let listener = Listener::tcp(address).await?;
    tokio::spawn(Arc::clone(&vmm).watch());
    let probing = Arc::clone(&vmm);
    tokio::spawn(async move {
        probing.accelerator().await;
    });
    let guests = Arc::clone(&vmm);
    tokio::spawn(async move {
        if let Err(error) = guests.serve_kernel_vsock(std::future::pending()).await {
            tracing::error!(%error, "host API not served");
        }
    });
    dstack_service::readiness::announce(Some(pid_file.as_path()).filter(|path| !path.as_os_str().is_empty()))?;
    tracing::info!(address = ?listener.local_addr(), "ready");
    dstack_rpc::serve(listener, router(&vmm)?, dstack_service::shutdown_signal()).await;
    Ok(())
}
