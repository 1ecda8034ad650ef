//! The guest agent: keys, quotes, events and evidence for containers, strangers and the host.
//!
//! ```text
//! containers ── /run/dstack.sock, /run/dstack/dstack.sock (0777) ──▶ inside:  keys, certificates, quotes, events
//! strangers  ── TCP 8090 ─────────────────────────────────────────▶ outside: identity, evidence over a nonce, a page
//! host       ── vsock 8000 ───────────────────────────────────────▶ host:    state of the system, shutdown
//! ```
//! What the agent knows about the application comes from the files of `dstack-init` and is compared with what was
//! measured ([`Application`]); a difference keeps it from starting. Strangers and host learn nothing secret and can
//! change nothing, except that the host may ask for a shutdown, which it could always force.

mod app_certificate;
mod application;
mod config;
mod containers;
mod dashboard;
mod evidence;
mod host;
mod inside;
mod network;
mod outside;
mod server;
mod state;
mod system;
mod tcb_info;
mod tls_key;

pub use application::{Application, ApplicationError};
pub use config::AgentConfig;
pub use server::{Agent, AgentAddresses, AgentError, SOCKET_MODE};
