//! Lines on the serial console, stamped with milliseconds since the kernel started.

use std::{fmt, io::Write as _};

use crate::boot_clock;

/// Writes one line to standard error, which is the console for PID 1 and its children. Control characters are replaced.
pub fn line(message: impl fmt::Display) {
    let text = printable(&message.to_string());
    let ms = boot_clock::elapsed_ms();
    let _ = writeln!(std::io::stderr().lock(), "dstack-init[{:>4}.{:03}]: {text}\r", ms / 1000, ms % 1000);
}

/// `text` without control characters, so that untrusted text cannot steer the terminal that shows the log.
#[must_use]
pub fn printable(text: &str) -> String {
    dstack_service::text::one_line(text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_lose_their_escape() {
        assert_eq!(printable("a\u{1b}[31m\nb\n"), "a [31m b");
    }
}
