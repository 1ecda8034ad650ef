//! Settings.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory for the vendor's keys, `root.pem` and the TDs' states. Created, 0700.
    pub state_dir: PathBuf,
    /// Unix socket of the control interface, 0600.
    pub control_socket: PathBuf,
    /// Address of the collateral service. Collateral is public; keep it on loopback all the same.
    #[serde(default = "default_collateral_listen")]
    pub collateral_listen: SocketAddr,
    /// Serve guests over this machine's kernel vsock, for TDs launched with an empty `listen`.
    #[serde(default)]
    pub kernel_vsock: bool,
    /// File that gets the process id once requests are served; empty for none.
    #[serde(default)]
    pub pid_file: PathBuf,
}

fn default_collateral_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8081))
}
