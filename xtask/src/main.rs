//! Repo law and release chores: `cargo xtask check`.

mod errors;
mod floors;
mod purity;
mod sources;
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
    /// Errors that users meet: each with code, cause and fix, and the page that lists them up to date.
    CheckErrors,
    /// Writes what is generated: docs/reference/errors.md.
    Docs,
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
        Task::CheckFloors => check_floors()?,
        Task::CheckTree => tree::check()?,
        Task::CheckErrors => errors::check()?,
        Task::Docs => {
            errors::write()?;
            Vec::new()
        }
        Task::Check => {
            let mut findings = check_floors()?;
            findings.extend(errors::check()?);
            findings.extend(tree::check()?);
            findings.extend(cargo(&["fmt", "--all", "--check"])?);
            findings.extend(cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--quiet", "--", "-D", "warnings"])?);
            // The production guest: no feature, so no simulator.
            findings.extend(cargo(&["clippy", "--package", "dstack-guest", "--bins", "--quiet", "--", "-D", "warnings"])?);
            findings
        }
    })
}

/// Who depends on whom, and that floors 0 and 1 are pure.
fn check_floors() -> anyhow::Result<Vec<String>> {
    let metadata = cargo_metadata::MetadataCommand::new().exec()?;
    let mut findings = floors::check(&metadata);
    findings.extend(purity::check(&floors::pure_packages(&metadata))?);
    Ok(findings)
}

/// Runs cargo; a failure is one finding, its output goes to the terminal.
fn cargo(args: &[&str]) -> anyhow::Result<Option<String>> {
    let status = Command::new(env!("CARGO")).args(args).status()?;
    Ok((!status.success()).then(|| format!("cargo {} failed", args.join(" "))))
}
