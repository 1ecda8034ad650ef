//! Where the agent listens and where it finds things. Every default is right inside a guest.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use dstack_api::wire;
use serde::Deserialize;

use crate::boot::layout::Layout;

/// Configuration file of the agent (TOML).
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Written once requests are served.
    pub ready_file: Option<PathBuf>,
    /// Directory with `app-compose.json`, `.sys-config.json` and `.appkeys.json`.
    pub share: PathBuf,
    /// Sockets of the containers' API; all serve the same.
    pub sockets: Vec<PathBuf>,
    /// The containers' API on the socket that `dstack-init` holds and hands over as standard input, in place of `sockets`: containers
    /// that mounted it keep reaching every later agent.
    pub socket_on_stdin: bool,
    /// Address of the public API.
    pub public_address: SocketAddr,
    /// vsock port of the host's API; 0 for none.
    pub host_port: u32,
    /// The host's API on a Unix socket as well, mode 0600.
    pub host_socket: Option<PathBuf>,
    /// Directory of the runtime event log.
    pub log_directory: PathBuf,
    /// Device of the software TEE; development images only.
    pub simulated_endpoint: String,
    /// Socket of the container engine.
    pub docker_socket: PathBuf,
    /// Socket on which `dstack-init` takes orders.
    pub control_socket: PathBuf,
    /// `os-release` of the image.
    pub os_release: PathBuf,
}

impl Default for AgentConfig {
    fn default() -> Self {
        let layout = Layout::default();
        let attester = dstack_attester::Options::default();
        Self {
            ready_file: None,
            share: layout.host_shared(),
            sockets: layout.agent_sockets().to_vec(),
            socket_on_stdin: false,
            public_address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, wire::AGENT_PORT)),
            host_port: wire::GUEST_API_PORT,
            host_socket: None,
            log_directory: attester.log_directory,
            simulated_endpoint: attester.simulated_endpoint,
            docker_socket: layout.docker_socket(),
            control_socket: layout.control_socket(),
            os_release: layout.os_release(),
        }
    }
}

impl AgentConfig {
    /// How to find the TEE.
    #[must_use]
    pub fn attester_options(&self) -> dstack_attester::Options {
        dstack_attester::Options {
            log_directory: self.log_directory.clone(),
            simulated_endpoint: self.simulated_endpoint.clone(),
            ..dstack_attester::Options::default()
        }
    }
}
