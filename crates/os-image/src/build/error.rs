//! Why an image was not built.

use std::{
    io,
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;

use crate::{ImageError, tools::ToolError, verity::VerityError};

/// Why an image was not built. Nothing is left behind in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file cannot be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Recipe or lock cannot be understood.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where known.
        reason: String,
    },
    /// The lock has no packages for something the recipe asks for.
    #[error("the lock file does not fit the recipe: {reason}")]
    StaleLock {
        /// What is missing.
        reason: String,
    },
    /// The host's apt does not name a Debian mirror.
    #[error("no Debian mirror is configured on this host")]
    NoMirror,
    /// Locked packages cannot be had, neither from the mirror nor from the snapshot archive.
    #[error("{} locked packages are not available any more, {} for one, and the snapshot archive does not answer", packages.len(), packages.first().map_or("", String::as_str))]
    PackagesGone {
        /// The packages as `name version`.
        packages: Vec<String>,
    },
    /// apt found packages, but they could not be fetched or are not what was promised.
    #[error("{} packages cannot be fetched, {} for one", packages.len(), packages.first().map_or("", String::as_str))]
    FetchFailed {
        /// The packages as `name version`.
        packages: Vec<String>,
    },
    /// A program of ours was not built before.
    #[error("guest program {} is missing", path.display())]
    NoGuestProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something the recipe names is not in a package.
    #[error("{what} is not in the packages of the recipe")]
    NotInPackages {
        /// A file or a kernel module.
        what: String,
    },
    /// A program failed.
    #[error("run a build tool")]
    Tool(#[from] ToolError),
    /// The hash tree cannot be made.
    #[error("make the hash tree of the root file system")]
    Verity(#[from] VerityError),
    /// The boot files cannot be measured.
    #[error("measure the boot files: {reason}")]
    Measure {
        /// Why.
        reason: String,
    },
    /// The image that was made cannot be loaded.
    #[error("load the image that was built")]
    Image(#[from] ImageError),
}

impl BuildError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl UserFacing for BuildError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "os/io",
            Self::Malformed { .. } => "os/malformed",
            Self::StaleLock { .. } => "os/stale-lock",
            Self::NoMirror => "os/no-mirror",
            Self::PackagesGone { .. } => "os/locked-package-gone",
            Self::FetchFailed { .. } => "os/fetch-failed",
            Self::NoGuestProgram { .. } => "os/no-guest-program",
            Self::NotInPackages { .. } => "os/not-in-packages",
            Self::Tool(error) => error.code(),
            Self::Verity(_) => "os/verity",
            Self::Measure { .. } => "os/measure",
            Self::Image(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Io { .. } => "check permissions and free disk space, then build again".to_owned(),
            Self::Malformed { path, .. } => format!("correct {}, or restore it from the repository", path.display()),
            Self::StaleLock { .. } | Self::NotInPackages { .. } => "correct os/dstack-os.toml, then run `dstack os lock`".to_owned(),
            Self::NoMirror => "set `mirror` in the [archive] table of os/dstack-os.toml".to_owned(),
            Self::PackagesGone { .. } => {
                "make the snapshot archive reachable, or review the newer packages and run `dstack os lock`".to_owned()
            }
            Self::FetchFailed { .. } => "check the network and the mirror of this host's apt, then build again".to_owned(),
            Self::NoGuestProgram { .. } => "build it: cargo build --release -p dstack-guest".to_owned(),
            Self::Tool(error) => error.fix(),
            Self::Verity(_) | Self::Measure { .. } => "run `dstack os build` again; report it if it happens twice".to_owned(),
            Self::Image(error) => error.fix(),
        }
    }
}
