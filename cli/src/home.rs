//! Where a local stack lives.

use std::path::{Path, PathBuf};

use dstack_service::directories;

use crate::failure::{Failure, Outcome};

/// `$DSTACK_HOME`, default `$XDG_STATE_HOME/dstack` or `~/.local/state/dstack`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    root: PathBuf,
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Home {
    /// From the environment.
    ///
    /// Errors: none of the variables is set, or the path is not absolute.
    pub(crate) fn from_env() -> Outcome<Self> {
        let root = variable("DSTACK_HOME").or_else(directories::state).ok_or_else(|| {
            Failure::usage("stack/no-home", "neither DSTACK_HOME nor HOME is set", "set DSTACK_HOME to a directory for the local stack")
        })?;
        if root.is_relative() {
            let cause = format!("DSTACK_HOME is `{}`, which is not absolute", root.display());
            return Err(Failure::usage("stack/relative-home", cause, "set DSTACK_HOME to an absolute path"));
        }
        Ok(Self { root })
    }

    /// A stack somewhere else.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What `dstack up` decided: ports and addresses.
    #[must_use]
    pub(crate) fn stack_file(&self) -> PathBuf {
        self.root.join("stack.toml")
    }

    /// How evidence of this stack is to be judged.
    #[must_use]
    pub(crate) fn verify_file(&self) -> PathBuf {
        self.root.join("verify.toml")
    }

    /// OS images.
    #[must_use]
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where a new stack looks for OS images: its own store, or the user's default one if only that has any.
    pub(crate) fn images_to_use(&self) -> PathBuf {
        let has_images = |store: &Path| std::fs::read_dir(store).is_ok_and(|mut entries| entries.next().is_some());
        let default = directories::state().map(|root| root.join("images")).filter(|store| has_images(store));
        if has_images(&self.images()) { self.images() } else { default.unwrap_or_else(|| self.images()) }
    }

    /// Packed container images.
    #[must_use]
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Logs of the services.
    #[must_use]
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The supervisor's API.
    #[must_use]
    pub(crate) fn supervisor_socket(&self) -> PathBuf {
        self.root.join("supervisor.sock")
    }

    /// A directory of one service.
    #[must_use]
    pub(crate) fn service(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}
