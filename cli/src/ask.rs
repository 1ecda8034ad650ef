//! Questions to the person at the terminal.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::{Failure, Outcome};

/// Whether somebody can answer.
#[must_use]
pub(crate) fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question; only `y` or `yes` goes on.
///
/// Errors: the answer is no.
pub(crate) fn confirm(question: &str) -> Outcome {
    let _no_terminal = write!(io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    let _end_of_input = io::stdin().read_line(&mut answer);
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new("cli/declined", "not confirmed, nothing was changed", "answer y, or add --yes"))
}
