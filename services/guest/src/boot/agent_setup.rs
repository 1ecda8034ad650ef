//! The guest agent's configuration.

use std::{fs, io, path::PathBuf};

use dstack_api::UserFacing;

use super::{host_share::write_private, layout::Layout};

/// It cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("write {}", path.display())]
pub struct AgentSetupError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl UserFacing for AgentSetupError {
    fn code(&self) -> &'static str {
        "guest/storage"
    }

    fn fix(&self) -> String {
        "give the VM more memory".to_owned()
    }
}

/// Writes `agent.toml`. Everything but the readiness file is the agent's default.
///
/// Errors: it cannot be written.
pub fn write_config(layout: &Layout) -> Result<(), AgentSetupError> {
    let path = layout.agent_config();
    let text = format!("ready_file = {:?}\n", layout.agent_ready().display().to_string());
    let _ = fs::remove_file(&path);
    write_private(&path, text.as_bytes()).map_err(|source| AgentSetupError { path, source })
}
