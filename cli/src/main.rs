//! `dstack`: see the library's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    dstack_cli::run()
}
