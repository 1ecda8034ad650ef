//! The command line of `dstack log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Commands about the release log.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Check that the log holds together, that it only grew, and who else says so; or check the proof of one release.
    Verify(LogVerifyArgs),
    /// Show releases and refusals of an app as they happen, checking the log all the while.
    Watch(LogWatchArgs),
}

/// Which KMS's log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Address of the KMS; default is the local stack's.
    #[arg(long, value_name = "URL", requires = "kms_ca")]
    pub kms_url: Option<String>,
    /// PEM file with the root certificate of the KMS.
    #[arg(long, value_name = "FILE", requires = "kms_url")]
    pub kms_ca: Option<PathBuf>,
}

/// Options of `log verify`.
#[derive(Debug, Args)]
pub(crate) struct LogVerifyArgs {
    /// The KMS.
    #[command(flatten)]
    pub log: LogArgs,
    /// File that remembers what was verified, so that the next run checks that the log only grew since; made if it is not there.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Verifier key of a witness that must have signed. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub witness: Vec<String>,
    /// How many of the witnesses must have signed; default is all.
    #[arg(long, value_name = "N", requires = "witness")]
    pub witnesses_needed: Option<usize>,
    /// Check the proof that came with a release (`release_proof`, C2SP tlog-proof) instead of the whole log; contacts nobody if
    /// --log-key is given.
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    pub proof: Option<PathBuf>,
    /// Verifier key of the log, for --proof.
    #[arg(long, value_name = "KEY", requires = "proof")]
    pub log_key: Option<String>,
}

/// Options of `log watch`.
#[derive(Debug, Args)]
pub(crate) struct LogWatchArgs {
    /// App id in hex, or its first digits; `all` for every app.
    pub app: String,
    /// The KMS.
    #[command(flatten)]
    pub log: LogArgs,
    /// Show what is there and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: u64,
}
