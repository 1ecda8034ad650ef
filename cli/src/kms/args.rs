//! `dstack kms …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Commands for operators and custodians of a KMS.
#[derive(Debug, Subcommand)]
pub(crate) enum KmsCommand {
    /// Key epochs of the separated scheme.
    #[command(subcommand)]
    Epochs(EpochsCommand),
    /// Shares of the root, kept by custodians.
    #[command(subcommand)]
    Recovery(RecoveryCommand),
}

/// The admin listener of a KMS.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// Address of the admin calls (`admin.listen` of the KMS).
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8001")]
    pub admin: String,
    /// File with the token of the admin calls.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

/// `dstack kms epochs …`
#[derive(Debug, Subcommand)]
pub(crate) enum EpochsCommand {
    /// List the epochs.
    List(AdminArgs),
    /// Announce a new epoch; apps get the keys of both while the old one is readable.
    Rotate {
        /// The KMS.
        #[command(flatten)]
        admin: AdminArgs,
        /// Seconds until the new epoch starts; replicas must have fetched it by then.
        #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
        activate_in: u64,
        /// Seconds after that during which the old keys are still handed out.
        #[arg(long, value_name = "SECONDS", default_value_t = 2_592_000)]
        readable_for: u64,
    },
    /// Have a replica fetch the epochs of another.
    Sync {
        /// The replica that fetches.
        #[command(flatten)]
        admin: AdminArgs,
        /// The replica that has them.
        #[arg(long, value_name = "URL")]
        source: String,
    },
}

/// `dstack kms recovery …`
#[derive(Debug, Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Split the root of a KMS among custodians: one file each, encrypted to its custodian.
    Create {
        /// The KMS.
        #[command(flatten)]
        admin: AdminArgs,
        /// How many custodians must come together.
        #[arg(long, value_name = "K")]
        threshold: u32,
        /// A custodian's age recipient (`age1…`). Once for each.
        #[arg(long = "custodian", value_name = "RECIPIENT", required = true)]
        custodians: Vec<String>,
        /// Directory for the files.
        #[arg(short = 'o', long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Prove that a share works: alone, or together with the other custodians against the KMS. The root is never shown or written.
    Drill {
        /// The custodian's share.
        #[command(flatten)]
        share: ShareArgs,
        /// Address of the KMS's admin calls; without it only this share is checked.
        #[arg(long, value_name = "URL", requires = "token_file")]
        admin: Option<String>,
        /// File with the token of the admin calls.
        #[arg(long, value_name = "FILE", requires = "admin")]
        token_file: Option<PathBuf>,
    },
    /// Give a share to a KMS without keys; it has the root again as soon as enough custodians did.
    Restore(Box<RestoreArgs>),
}

/// A share and what opens it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShareArgs {
    /// The share file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The custodian's age identity file (`AGE-SECRET-KEY-1…`).
    #[arg(short = 'i', long, value_name = "FILE")]
    pub identity: PathBuf,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The custodian's share.
    #[command(flatten)]
    pub share: ShareArgs,
    /// Address of the KMS's onboarding (`onboard.listen` of the KMS).
    #[arg(long, value_name = "URL")]
    pub onboard: String,
    /// File with the token of the onboarding calls, if it demands one.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// DNS name of the KMS.
    #[arg(long, value_name = "NAME", default_value = "kms.dstack.internal")]
    pub domain: String,
    /// Aggregated measurement that the KMS must have, hex. May be repeated.
    #[arg(long = "measurement", value_name = "HEX", required_unless_present = "danger_unattested")]
    pub measurements: Vec<String>,
    /// Collateral service for its evidence.
    #[arg(long, value_name = "URL", default_value = "https://api.trustedservices.intel.com")]
    pub collateral_url: String,
    /// Root certificate of a software TEE to believe in. Its evidence proves nothing about hardware.
    #[arg(long, value_name = "FILE")]
    pub simulated_root: Option<PathBuf>,
    /// Give the share to a KMS that proves nothing. For test systems.
    #[arg(long, conflicts_with = "measurements")]
    pub danger_unattested: bool,
}
