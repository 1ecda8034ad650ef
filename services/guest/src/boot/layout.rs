//! Where things are in the guest, relative to a root that tests replace.

use std::path::{Path, PathBuf};

/// Paths of the guest.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self::below("/")
    }
}

impl Layout {
    /// The layout below `root`.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Root of everything else.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Working directory of the application; on the data disk once that is open.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path("dstack")
    }

    /// Copies of the host's files and what was made of them. Never on a disk; only root may look.
    #[must_use]
    pub fn host_shared(&self) -> PathBuf {
        self.path("dstack/.host-shared")
    }

    /// One of those files.
    #[must_use]
    pub fn shared_file(&self, name: &str) -> PathBuf {
        self.host_shared().join(name)
    }

    /// Keys of the application instance.
    #[must_use]
    pub fn app_keys(&self) -> PathBuf {
        self.shared_file(".appkeys.json")
    }

    /// The opened environment as an environment file.
    #[must_use]
    pub fn environment_file(&self) -> PathBuf {
        self.shared_file(".decrypted-env")
    }

    /// The opened environment as JSON.
    #[must_use]
    pub fn environment_json(&self) -> PathBuf {
        self.shared_file(".decrypted-env.json")
    }

    /// The compose file that runs.
    #[must_use]
    pub fn compose_file(&self) -> PathBuf {
        self.path("dstack/docker-compose.yaml")
    }

    /// Mount point of the data disk.
    #[must_use]
    pub fn data_disk(&self) -> PathBuf {
        self.path("run/dstack-init/data")
    }

    /// State of `dstack-init`; only root may look, and no container mounts it.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.path("run/dstack-init")
    }

    /// Socket on which `dstack-init` takes orders; root only.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.path("run/dstack-init/control.sock")
    }

    /// Configuration of the guest agent.
    #[must_use]
    pub fn agent_config(&self) -> PathBuf {
        self.path("run/dstack-init/agent.toml")
    }

    /// Written by the guest agent once it serves.
    #[must_use]
    pub fn agent_ready(&self) -> PathBuf {
        self.path("run/dstack-init/agent.ready")
    }

    /// Logs of the programs of the guest.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path("run/log/dstack")
    }

    /// Socket of the container engine.
    #[must_use]
    pub fn docker_socket(&self) -> PathBuf {
        self.path("run/docker.sock")
    }

    /// Names of the socket that containers reach the guest agent by. `/var/run` is a link to `/run`, so that these are all four paths
    /// existing clients look at.
    #[must_use]
    pub fn agent_sockets(&self) -> [PathBuf; 2] {
        ["run/dstack/dstack.sock", "run/dstack.sock"].map(|path| self.path(path))
    }

    /// `os-release` of the image.
    #[must_use]
    pub fn os_release(&self) -> PathBuf {
        self.path("usr/lib/os-release")
    }
}
