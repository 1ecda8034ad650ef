//! Why a request is refused.

use std::{io, path::PathBuf};

use dstack_api::UserFacing;

/// A refused request or a supervisor that cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id has other characters or another length.
    #[error("process id {0:?} is not 1 to 128 of A-Z a-z 0-9 . _ - starting with a letter or digit")]
    BadId(String),
    /// There is no such process.
    #[error("no process {0}")]
    Unknown(String),
    /// It must be stopped first.
    #[error("process {0} is running")]
    Running(String),
    /// The supervisor is shutting down.
    #[error("the supervisor is shutting down")]
    Frozen,
    /// The kernel did not start the program.
    #[error("starting {command}")]
    Launch {
        /// The program.
        command: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process does not go away.
    #[error("process {0} still exists after SIGKILL; it hangs in the kernel")]
    Unkillable(String),
    /// The table cannot be read or written.
    #[error("process table {}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another supervisor owns the table.
    #[error("another supervisor uses {}", .0.display())]
    Locked(PathBuf),
}

impl UserFacing for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::BadId(_) => "supervisor/bad-id",
            Self::Unknown(_) => "supervisor/unknown-process",
            Self::Running(_) => "supervisor/running",
            Self::Frozen => "supervisor/shutting-down",
            Self::Launch { .. } => "supervisor/cannot-start",
            Self::Unkillable(_) => "supervisor/unkillable",
            Self::Table { .. } => "supervisor/table",
            Self::Locked(_) => "supervisor/already-running",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::BadId(_) => "choose another id".to_owned(),
            Self::Unknown(_) => "see GET /list".to_owned(),
            Self::Running(id) => format!("stop {id} first"),
            Self::Frozen => "start a new supervisor".to_owned(),
            Self::Launch { command, .. } => format!("check that {command} exists and that this user may execute it"),
            Self::Unkillable(_) => "look for a hanging device or mount in the kernel log".to_owned(),
            Self::Table { path, .. } => format!("check the disk and the permissions of {}", path.display()),
            Self::Locked(_) => "use the running one, or give another state_dir".to_owned(),
        }
    }
}
