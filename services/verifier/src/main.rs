//! `dstack-verifier`: judges evidence for whoever asks over HTTP, or in a file.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Parser;
use dstack_api::UserFacing;
use dstack_service::report::Report;
use dstack_verifier::{Server, Verification, certificate, config::Settings};

/// Judges evidence of confidential VMs: a service, or one file.
#[derive(Parser)]
#[command(name = "dstack-verifier", version)]
struct Arguments {
    /// Configuration file (TOML); without one the defaults hold. `DSTACK_VERIFIER_*` in the environment wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, print it with all defaults, and exit.
    #[arg(long)]
    check_config: bool,
    /// Judge the evidence in a file (any form of `dstack verify`), print the answer, and exit: 0 valid, 1 not valid, 3 undecided.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check_config", "verify_cert"])]
    verify: Option<PathBuf>,
    /// Judge a certificate chain (PEM, leaf first) and the evidence in its leaf, print the answer, and exit likewise.
    #[arg(long, value_name = "FILE", conflicts_with = "check_config")]
    verify_cert: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(report) => {
            let _ = writeln!(std::io::stderr(), "{}", report.for_program("dstack-verifier"));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Report> {
    let settings = Settings::load(arguments.config.as_deref(), std::env::vars()).map_err(|error| report(&error))?;
    if arguments.check_config {
        let _ = write!(std::io::stdout(), "{}", settings.effective());
        return Ok(ExitCode::SUCCESS);
    }
    dstack_service::telemetry::init("dstack-verifier");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|error| failure(&error))?;
    runtime.block_on(async {
        if let Some(path) = arguments.verify.as_ref().or(arguments.verify_cert.as_ref()) {
            let bytes = std::fs::read(path).map_err(|error| failure(&error).during(format!("reading {}", path.display())))?;
            let verification = Verification::open(&settings).map_err(|error| report(&error))?;
            let answer = match &arguments.verify_cert {
                Some(_) => certificate::verify(&verification, &bytes).await,
                None => verification.verify(bytes).await,
            };
            return Ok(print(&answer.map_err(|error| report(&error))?));
        }
        let server = Server::open(&settings).await.map_err(|error| report(&error))?;
        server.run(dstack_service::shutdown_signal()).await.map_err(|error| failure(&error))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn print(answer: &dstack_api::verifier::VerifyResponse) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(answer).unwrap_or_default());
    ExitCode::from(match (answer.is_valid, answer.verdict.as_str()) {
        (true, _) => 0,
        (false, "UNDECIDED") => 3,
        (false, _) => 1,
    })
}

fn report(error: &dyn UserFacing) -> Report {
    Report::new(error)
}

fn failure(error: &std::io::Error) -> Report {
    dstack_api::RpcError::new("verifier/start", error.to_string(), "check what the message names").into()
}
