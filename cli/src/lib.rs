//! The `dstack` command for owners, operators and relying parties.
//!
//! Three kinds of commands share one binary: the local stack (`up`, `down`), apps on a VMM (`deploy`, `ps`, `logs`, …), and
//! judging evidence (`verify`, `measure`). Results go to stdout, progress and errors to stderr.

mod args;
mod ask;
mod compose;
mod deploy;
mod env_file;
mod failure;
mod home;
mod kms;
mod log;
mod measure;
mod os;
mod output;
mod policy;
mod ports;
mod progress;
mod run;
mod size;
mod stack;
mod verify;
mod vms;

pub use failure::{EXIT_NEGATIVE, EXIT_UNDETERMINED, EXIT_USAGE, Failure};
pub use run::run;
