//! The policy of a KMS: test it, explain a decision, simulate a change, serve it to other KMS.

mod args;
mod cases;
mod explain;
mod serve;
mod simulate;

pub(crate) use args::PolicyCommand;

use std::path::Path;

use dstack_authorization::AllowList;

use crate::{failure::Outcome, output::Output};

/// Runs a `dstack policy` command; gives the exit code.
///
/// Errors: the list or what is asked about cannot be used.
pub(crate) async fn run(command: &PolicyCommand, output: Output) -> Outcome<u8> {
    match command {
        PolicyCommand::Test(args) => cases::test(args, output),
        PolicyCommand::Explain(args) => explain::explain(args, output),
        PolicyCommand::Simulate(args) => simulate::simulate(args, output).await,
        PolicyCommand::Serve(args) => serve::serve(args, output).await.map(|()| 0),
    }
}

fn load(path: &Path) -> Outcome<AllowList> {
    Ok(AllowList::load(path)?)
}
