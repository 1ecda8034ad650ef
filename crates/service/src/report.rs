//! The one form in which an error reaches a person.

use std::{error::Error, fmt};

use dstack_api::{RpcError, UserFacing};

/// Cause, code and fix of an error, printed as
///
/// ```text
/// dstack: error: deploying hello [vmm/not-enough-memory]
///   cause: 4096 MiB asked, 1024 MiB left
///   fix:   stop a VM, or ask for less with --memory
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was being done; empty when the cause says it.
    pub operation: String,
    /// Stable code.
    pub code: String,
    /// The whole chain of causes.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Report {
    /// From an error made for users.
    #[must_use]
    pub fn new(error: &dyn UserFacing) -> Self {
        RpcError::from_user_facing(error).into()
    }

    /// Says what was being done.
    #[must_use]
    pub fn during(mut self, operation: impl Into<String>) -> Self {
        self.operation = operation.into();
        self
    }

    /// Formats with the program's name.
    #[must_use]
    pub fn for_program<'a>(&'a self, program: &'a str) -> impl fmt::Display + 'a {
        Printed { report: self, program }
    }
}

impl From<RpcError> for Report {
    fn from(error: RpcError) -> Self {
        Self { operation: String::new(), code: error.code, cause: error.message, fix: error.fix }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.operation.is_empty() {
            write!(f, "{}: ", self.operation)?;
        }
        write!(f, "{}", self.cause)
    }
}

impl Error for Report {}

struct Printed<'a> {
    report: &'a Report,
    program: &'a str,
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { operation, code, cause, fix } = self.report;
        let indented = |text: &str| text.trim_end().replace('\n', "\n         ");
        if operation.is_empty() {
            write!(f, "{}: error: {} [{code}]", self.program, indented(cause))?;
        } else {
            write!(f, "{}: error: {operation} [{code}]\n  cause: {}", self.program, indented(cause))?;
        }
        if !fix.is_empty() {
            write!(f, "\n  fix:   {}", indented(fix))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_operation_cause_and_fix() {
        let report = Report::from(RpcError::new("vmm/x", "first\nsecond", "do it")).during("deploying hello");

        assert_eq!(
            report.for_program("dstack").to_string(),
            "dstack: error: deploying hello [vmm/x]\n  cause: first\n         second\n  fix:   do it"
        );
    }

    #[test]
    fn without_operation_the_cause_leads() {
        let report = Report::from(RpcError::new("vmm/x", "no memory", ""));

        assert_eq!(report.for_program("dstack-vmm").to_string(), "dstack-vmm: error: no memory [vmm/x]");
    }
}
