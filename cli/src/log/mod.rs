//! The release log of a KMS: verify it, watch it.

mod args;
mod remote;
mod verify;
mod watch;

pub(crate) use args::{LogArgs, LogCommand};
pub(crate) use remote::RemoteLog;

use crate::{failure::Outcome, output::Output};

/// Runs a `dstack log` command.
///
/// Errors: the log does not hold, or could not be read.
pub(crate) async fn run(command: &LogCommand, output: Output) -> Outcome {
    match command {
        LogCommand::Verify(args) => verify::verify(args, output).await,
        LogCommand::Watch(args) => watch::watch(args, output).await,
    }
}
