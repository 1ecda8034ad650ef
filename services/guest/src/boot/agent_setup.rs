//! What the guest agent is started with: its configuration, and the socket that containers reach it by.
//!
//! Containers bind-mount the socket's file. Were it the agent's own, each new start would put another file in its place and leave them
//! with a dead one; so dstack-init opens it once, keeps it, and hands it to every start.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;

use super::{host_share::write_private, layout::Layout};
use crate::agent::SOCKET_MODE;

/// It cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("make {}", path.display())]
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

/// Opens the socket of the containers' API under every name that clients look for.
///
/// Errors: it cannot be made.
pub fn open_socket(layout: &Layout) -> Result<OwnedFd, AgentSetupError> {
    let [first, others @ ..] = layout.agent_sockets();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentSetupError { path, source }
    };
    for path in others.iter().chain([&first]) {
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    let socket = dstack_rpc::bind_unix(&first, SOCKET_MODE).map_err(failed(&first))?;
    for path in &others {
        // Another name of the same socket.
        fs::hard_link(&first, path).map_err(failed(path))?;
    }
    Ok(socket.into())
}

/// Writes `agent.toml`. Everything but the readiness file and the socket is the agent's default.
///
/// Errors: it cannot be written.
pub fn write_config(layout: &Layout) -> Result<(), AgentSetupError> {
    let path = layout.agent_config();
    let text = format!("ready_file = {:?}\nsocket_on_stdin = true\n", layout.agent_ready().display().to_string());
    let _ = fs::remove_file(&path);
    write_private(&path, text.as_bytes()).map_err(|source| AgentSetupError { path, source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    };

    use super::*;

    #[test]
    fn every_name_is_the_same_socket_and_open_to_all_users() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());

        let socket = UnixListener::from(open_socket(&layout).unwrap());

        let [one, two] = layout.agent_sockets();
        assert_eq!(fs::metadata(&one).unwrap().ino(), fs::metadata(&two).unwrap().ino());
        for path in [one, two] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
            let _waiting = UnixStream::connect(path).unwrap();
            assert!(socket.accept().is_ok());
        }
        assert!(open_socket(&layout).is_err(), "it is opened once");
    }
}
