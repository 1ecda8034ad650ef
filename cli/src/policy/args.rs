//! The command line of `dstack policy`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};

use crate::log::LogArgs;

/// Commands about the policy.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check an allow list, and that it decides cases as expected.
    Test(PolicyTestArgs),
    /// Show what each rule of an allow list says about a boot.
    Explain(PolicyExplainArgs),
    /// Show which instances that have keys would not get them again under another allow list.
    Simulate(PolicySimulateArgs),
    /// Answer the policy webhook of KMS deployments from an allow list.
    Serve(PolicyServeArgs),
}

const CASES_HELP: &str = "\
CASES is a JSON list; a boot has the fields that the policy webhook sends:
  [{\"name\": \"app runs\", \"expect\": \"allow\", \"boot\": {\"teeVariant\": \"dstack-tdx\", \"appId\": \"…\", …}},
   {\"name\": \"old firmware\", \"subject\": \"kms\", \"expect\": \"kms/tcb-status-not-allowed\", \"boot\": {…}}]

Exit codes: 0 as expected, 1 not as expected, 2 wrong usage.";

/// Options of `policy test`.
#[derive(Debug, Args)]
#[command(after_help = CASES_HELP)]
pub(crate) struct PolicyTestArgs {
    /// The allow list.
    #[arg(value_name = "LIST")]
    pub list: PathBuf,
    /// Files with cases.
    #[arg(value_name = "CASES")]
    pub cases: Vec<PathBuf>,
}

/// Options of `policy explain`.
#[derive(Debug, Args)]
pub(crate) struct PolicyExplainArgs {
    /// The allow list.
    #[arg(value_name = "LIST")]
    pub list: PathBuf,
    /// The boot: JSON with the fields that the policy webhook sends, or an entry of the release log; `-` is stdin.
    #[arg(value_name = "BOOT")]
    pub boot: PathBuf,
    /// Ask for the root keys instead of an app's.
    #[arg(long)]
    pub kms: bool,
}

/// Options of `policy simulate`.
#[derive(Debug, Args)]
pub(crate) struct PolicySimulateArgs {
    /// The allow list as it would be.
    #[arg(value_name = "LIST")]
    pub list: PathBuf,
    /// The KMS whose release log says who has keys.
    #[command(flatten)]
    pub log: LogArgs,
    /// Look at releases of the last N days only.
    #[arg(long, value_name = "N")]
    pub days: Option<u64>,
}

/// Options of `policy serve`.
#[derive(Debug, Args)]
pub(crate) struct PolicyServeArgs {
    /// The allow list; followed while running.
    #[arg(value_name = "LIST")]
    pub list: PathBuf,
    /// Where to listen. Whoever reaches the address can ask; nothing secret is told.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,
}
