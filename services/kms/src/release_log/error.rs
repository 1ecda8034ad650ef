//! Why nothing can be logged.

use std::{io, path::PathBuf, sync::Arc};

use dstack_api::UserFacing;
use dstack_release_log::{CheckpointError, EntryError};

/// Why the log cannot be opened or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseLogError {
    /// Reading or writing.
    #[error("{action} {}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// The files are not what was signed.
    #[error("the release log in {} is damaged: {reason}", dir.display())]
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// Another process writes to it.
    #[error("the release log in {} is in use by another process", dir.display())]
    InUse {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The log's name cannot be signed with.
    #[error("the key of the release log")]
    Key(#[from] CheckpointError),
    /// An entry that does not fit.
    #[error("an entry of the release log: {reason}")]
    Entry {
        /// Why.
        reason: String,
    },
    /// An earlier write failed in a way that leaves the disk's content unknown.
    #[error("the release log in {} stopped after a failed write", dir.display())]
    Stopped {
        /// The log's directory.
        dir: PathBuf,
    },
    /// More entries wait than may.
    #[error("the release log does not keep up")]
    Overloaded,
}

impl From<EntryError> for ReleaseLogError {
    fn from(error: EntryError) -> Self {
        Self::Entry { reason: error.to_string() }
    }
}

impl UserFacing for ReleaseLogError {
    fn code(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "kms/release-log-damaged",
            Self::InUse { .. } => "kms/release-log-in-use",
            _ => "kms/release-log-unavailable",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Io { path, .. } => format!("check space and permissions of {}", path.display()),
            Self::Damaged { dir, .. } => {
                format!(
                    "restore {} from a backup, or move it away to begin a new log, which everybody who watches will notice",
                    dir.display()
                )
            }
            Self::InUse { dir } => format!("stop the process that uses {}, or set release_log.dir", dir.display()),
            Self::Stopped { dir } => format!("check the disk of {}, then start the KMS again", dir.display()),
            Self::Key(_) | Self::Entry { .. } => "read the log; this is a defect worth reporting".to_owned(),
            Self::Overloaded => "try again; if it stays, put the release log on a faster disk".to_owned(),
        }
    }
}
