//! `dstack-kms`: releases keys only to measured, allowed code.

use std::{io::Write as _, num::NonZeroUsize, path::PathBuf, process::ExitCode};

use clap::Parser;
use dstack_api::UserFacing;
use dstack_kms::{Onboarded, OnboardingServer, Server, config::Settings};
use dstack_service::report::Report;

/// A release makes thousands of short-lived pieces, and the C library's allocator gives their pages back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Key management service: releases keys only to measured, allowed code.
#[derive(Parser)]
#[command(name = "dstack-kms", version)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration, print it with all defaults, and exit.
    #[arg(long)]
    check_config: bool,
    /// Take over the keys of a KMS whose cert_dir is DIR (plaintext layout), seal them into the configured cert_dir, and exit.
    #[arg(long, value_name = "DIR", conflicts_with = "check_config")]
    import: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            let _ = writeln!(std::io::stderr(), "{}", report.for_program("dstack-kms"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Report> {
    let settings = Settings::load(&arguments.config).map_err(|error| report(&error))?;
    if arguments.check_config {
        let _ = write!(std::io::stdout(), "{}", settings.effective());
        return Ok(());
    }
    dstack_service::telemetry::init("dstack-kms");
    keep_pages_small();
    let workers = dstack_kms::network_threads(std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.map_err(|error| start_failure(&error))?;
    runtime.block_on(async {
        if let Some(from) = &arguments.import {
            return dstack_kms::import(&settings, from).await.map_err(|error| report(&error));
        }
        if let Some(onboarding) = OnboardingServer::open(&settings).await.map_err(|error| report(&error))?
            && onboarding.run(dstack_service::shutdown_signal()).await == Onboarded::Stopped
        {
            return Ok(());
        }
        let server = Server::open(settings).await.map_err(|error| report(&error))?;
        // On a network thread: this one would have to be woken for each new connection.
        let serving = tokio::spawn(server.run(dstack_service::shutdown_signal()));
        serving.await.map_err(std::io::Error::other).flatten().map_err(|error| start_failure(&error))
    })
}

/// Zeroing 2 MiB at a time costs a tenth of a release of a new guest, whose connection needs a few KiB.
fn keep_pages_small() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay as they are");
    }
}

fn report(error: &dyn UserFacing) -> Report {
    Report::new(error)
}

fn start_failure(error: &std::io::Error) -> Report {
    dstack_api::RpcError::new("kms/start", error.to_string(), "check what the message names").into()
}
