//! Signals that end a daemon.

use tokio::signal::unix::{SignalKind, signal};

/// Completes at SIGTERM or SIGINT. Where handlers cannot be installed it never completes and the default action applies.
pub async fn shutdown_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signal handlers cannot be installed");
        return std::future::pending().await;
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "stopping");
}
