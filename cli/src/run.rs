//! From the command line to an exit code.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::{
    args::{Arguments, Command, ImageCommand, OsCommand},
    deploy,
    failure::{Failure, Outcome},
    home::Home,
    kms, log, measure, os,
    output::Output,
    policy, stack, verify, vms,
};

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::detect(arguments.json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(output, &Failure::new("cli/internal", error.to_string(), "free memory or file descriptors")),
    };
    match runtime.block_on(execute(arguments.command, output)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(output, &failure),
    }
}

fn fail(output: Output, failure: &Failure) -> ExitCode {
    output.failure(failure);
    ExitCode::from(failure.exit)
}

async fn execute(command: Command, output: Output) -> Outcome<u8> {
    match command {
        Command::Verify(args) => return verify::verify(&args, output).await,
        Command::Up(args) => stack::up(&Home::from_env()?, &args, output).await?,
        Command::Down(args) => stack::down(&Home::from_env()?, &args, output).await?,
        Command::Deploy(args) => deploy::deploy(&args, output).await?,
        Command::Ps(args) => vms::ps(&args, output).await?,
        Command::Logs(args) => vms::logs(&args, output).await?,
        Command::Info(args) => vms::info(&args, output).await?,
        Command::Stop(args) => vms::stop(&args, output).await?,
        Command::Start(args) => vms::start(&args, output).await?,
        Command::Rm(args) => vms::rm(&args, output).await?,
        Command::Os(OsCommand::Build(args)) => os::build(&args, output)?,
        Command::Os(OsCommand::Lock(args)) => os::lock(&args, output)?,
        Command::Os(OsCommand::List { images }) => os::list(images.as_deref(), output)?,
        Command::Image(ImageCommand::Pack { archives, output: folder }) => os::pack(&archives, folder.as_deref(), output)?,
        Command::Kms(command) => kms::operate(&command, output).await?,
        Command::Policy(command) => return policy::run(&command, output).await,
        Command::Log(command) => log::run(&command, output).await?,
        Command::Measure(args) => return measure::measure(&args, output),
        Command::Completions { shell } => clap_complete::generate(shell, &mut Arguments::command(), "dstack", &mut std::io::stdout()),
    }
    Ok(0)
}
