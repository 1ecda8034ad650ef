//! Repo law and release chores: `cargo xtask check`.

mod floors;
mod tree;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Repo law and release chores")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything below, then formatting, lints and dependency policy.
    Check,
    /// Dependency floors and who may link whom.
    CheckFloors,
    /// File sizes, names and leftovers.
    CheckTree,
}

#[allow(clippy::print_stderr, reason = "this is a command for developers")]
fn main() -> ExitCode {
    match run(&Args::parse().task) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in &findings {
                eprintln!("xtask: {finding}");
            }
            eprintln!("xtask: {} findings", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(task: &Task) -> anyhow::Result<Vec<String>> {
    Ok(match task {
        Task::CheckFloors => floors::check(&cargo_metadata::MetadataCommand::new().exec()?),
        Task::CheckTree => tree::check()?,
        Task::Check => {
            let mut findings = floors::check(&cargo_metadata::MetadataCommand::new().exec()?);
            findings.extend(tree::check()?);
            findings.extend(cargo(&["fmt", "--all", "--check"])?);
            findings.extend(cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--quiet", "--", "-D", "warnings"])?);
            // The production guest: no feature, so no simulator.
            findings.extend(cargo(&["clippy", "--package", "dstack-guest", "--bins", "--quiet", "--", "-D", "warnings"])?);
            findings
        }
    })
}

/// Runs cargo; a failure is one finding, its output goes to the terminal.
fn cargo(args: &[&str]) -> anyhow::Result<Option<String>> {
    let status = Command::new(env!("CARGO")).args(args).status()?;
    Ok((!status.success()).then(|| format!("cargo {} failed", args.join(" "))))
}
