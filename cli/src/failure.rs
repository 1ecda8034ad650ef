//! Why a command fails: a report for people and an exit code for scripts.

use std::{io, path::Path};

use dstack_api::{RpcError, UserFacing};
use dstack_service::report::Report;

/// The command did what was asked and the answer is no, or it could not do it.
pub const EXIT_NEGATIVE: u8 = 1;
/// The command was called wrongly.
pub const EXIT_USAGE: u8 = 2;
/// The question could not be decided.
pub const EXIT_UNDETERMINED: u8 = 3;

/// An error on its way to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What is printed.
    pub report: Report,
    /// How the process ends.
    pub exit: u8,
}

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// An error with its three parts.
    #[must_use]
    pub fn new(code: &str, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { report: RpcError::new(code, cause, fix).into(), exit: EXIT_NEGATIVE }
    }

    /// Wrong usage.
    #[must_use]
    pub fn usage(code: &str, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { exit: EXIT_USAGE, ..Self::new(code, cause, fix) }
    }

    /// What a service answered.
    #[must_use]
    pub fn rpc(error: RpcError) -> Self {
        Self { report: error.into(), exit: EXIT_NEGATIVE }
    }

    /// A file operation. `verb`: "reading", "writing".
    #[must_use]
    pub fn io(verb: &str, path: &Path, error: &io::Error) -> Self {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => format!("check the path {}", path.display()),
            io::ErrorKind::PermissionDenied => format!("give this user access to {}", path.display()),
            io::ErrorKind::StorageFull => format!("free space on the disk of {}", path.display()),
            _ => format!("check {}", path.display()),
        };
        Self::new("cli/file", format!("{verb} {}: {error}", path.display()), fix)
    }

    /// Says what was being done.
    #[must_use]
    pub fn during(mut self, operation: impl Into<String>) -> Self {
        self.report = self.report.during(operation);
        self
    }

    /// Ends the process with another code.
    #[must_use]
    pub fn with_exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }
}

impl<E: UserFacing> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { report: Report::new(&error), exit: EXIT_NEGATIVE }
    }
}
