//! The guest agent.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use dstack_api::UserFacing;
use dstack_attester::Attester;
use dstack_guest::agent::{Agent, AgentConfig};
use dstack_service::{config, readiness, report::Report, shutdown_signal, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::init("dstack-guest-agent");
    let mut arguments = std::env::args().skip(1);
    let path = match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, _, _) => None,
        (Some("--config"), Some(path), None) => Some(PathBuf::from(path)),
        _ => {
            tracing::error!("usage: dstack-guest-agent [--config FILE]");
            return ExitCode::from(2);
        }
    };
    match run(path).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            tracing::error!(code = report.code, cause = report.cause, fix = report.fix, "the guest agent cannot serve");
            ExitCode::FAILURE
        }
    }
}

async fn run(path: Option<PathBuf>) -> Result<(), Report> {
    let settings: AgentConfig = match path {
        Some(path) => config::load(path).map_err(report)?,
        None => AgentConfig::default(),
    };
    let attester = Arc::new(Attester::open(&settings.attester_options()).map_err(report)?);
    let ready_file = settings.ready_file.clone();
    let agent = Agent::open(settings, attester).await.map_err(report)?;
    // The listeners are open: from here on nobody is turned away.
    if let Err(error) = readiness::announce(ready_file.as_deref()) {
        tracing::warn!(%error, "readiness could not be announced");
    }
    agent.serve(shutdown_signal()).await;
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn report(error: impl UserFacing) -> Report {
    Report::new(&error)
}
