//! Configuration file.

use std::path::PathBuf;

use dstack_service::log_file::Rotation;
use serde::{Deserialize, Serialize};

/// `supervisor.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Unix socket of the API, created with mode 0600.
    pub socket: PathBuf,
    /// Directory of the process table, created with mode 0700.
    pub state_dir: PathBuf,
    /// Seconds between SIGTERM and SIGKILL where a stop names no other.
    #[serde(default = "ten")]
    pub stop_grace_seconds: u64,
    /// Output files of processes are rotated beyond this size; 0 never.
    #[serde(default = "four_mib")]
    pub log_max_bytes: u64,
    /// Older pieces kept of each output file.
    #[serde(default = "three")]
    pub log_backups: u32,
    /// Where the process id is written once requests are served; empty for nowhere.
    #[serde(default)]
    pub pid_file: PathBuf,
}

fn ten() -> u64 {
    10
}

fn four_mib() -> u64 {
    Rotation::default().max_bytes
}

fn three() -> u32 {
    Rotation::default().backups
}

impl Config {
    /// Defaults around a socket and a state directory.
    #[must_use]
    pub fn new(socket: PathBuf, state_dir: PathBuf) -> Self {
        Self { socket, state_dir, stop_grace_seconds: ten(), log_max_bytes: four_mib(), log_backups: three(), pid_file: PathBuf::new() }
    }

    pub(crate) fn rotation(&self) -> Rotation {
        Rotation { max_bytes: self.log_max_bytes, backups: self.log_backups }
    }
}
