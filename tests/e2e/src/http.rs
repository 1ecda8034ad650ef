//! HTTP as a stranger sends it: with curl.

use std::process::Command;

/// Body of a successful answer, or curl's complaint.
///
/// # Errors
/// No connection, no answer in 5 s, or a status of 400 and above.
pub fn try_get(url: &str) -> Result<String, String> {
    fetch(url, "5")
}

/// The same with no more than a second of patience: for watching something come up behind an address that accepts at once.
///
/// # Errors
/// As [`try_get`].
pub fn try_get_quickly(url: &str) -> Result<String, String> {
    fetch(url, "1")
}

fn fetch(url: &str, seconds: &str) -> Result<String, String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--max-time", seconds, url])
        .output()
        .map_err(|error| format!("running curl: {error}"))?;
    let body = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(body) } else { Err(format!("{} {body}", String::from_utf8_lossy(&output.stderr).trim())) }
}

/// Body of an answer that must succeed.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn get(url: &str) -> String {
    try_get(url).unwrap_or_else(|error| panic!("GET {url}: {error}"))
}
