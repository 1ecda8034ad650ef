//! Logs: to stderr, text on a terminal, JSON elsewhere.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging for the program `name`. `DSTACK_LOG` (or `RUST_LOG`) sets the filter, default `info`.
///
/// A second call changes nothing, so tests may start several services in one process.
pub fn init(name: &str) {
    let filter = ["DSTACK_LOG", "RUST_LOG"].into_iter().find_map(|variable| EnvFilter::try_from_env(variable).ok());
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("info")));
    let started = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
    if started.is_ok() {
        tracing::info!(program = name, version = env!("CARGO_PKG_VERSION"), "started");
    }
}
