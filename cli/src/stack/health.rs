//! Waiting until a service answers.

use std::{path::Path, time::Duration};

use dstack_api::supervisor::{ProcessInfo, ProcessStatus};
use tokio::time::Instant;

use super::supervisor::Supervisor;
use crate::{
    failure::{Failure, Outcome},
    output::printable,
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Lines of a log that are shown when its service does not start.
const LOG_LINES: usize = 8;

/// Asks `probe` until it succeeds.
///
/// Errors: the process ended, or the deadline passed; with the end of its log.
pub(super) async fn wait_ready<F, R>(supervisor: &Supervisor, id: &str, log: &Path, deadline: Duration, mut probe: F) -> Outcome
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let end = Instant::now() + deadline;
    loop {
        if probe().await {
            return Ok(());
        }
        let fix = format!("read {}", log.display());
        match supervisor.info(id).await?.map(|info: ProcessInfo| info.state.status) {
            Some(ProcessStatus::Running) => {}
            Some(ProcessStatus::Exited(status)) => {
                let cause = format!("{id} ended with {}{}", describe_exit(status), tail(log));
                return Err(Failure::new("stack/service-ended", cause, fix));
            }
            Some(ProcessStatus::Error(error)) => return Err(Failure::new("stack/service-not-started", format!("{id}: {error}"), fix)),
            Some(ProcessStatus::Stopped) | None => {
                return Err(Failure::new("stack/service-stopped", format!("{id} was stopped by somebody else"), "repeat `dstack up`"));
            }
        }
        if Instant::now() >= end {
            let cause = format!("{id} did not answer within {} s{}", deadline.as_secs(), tail(log));
            return Err(Failure::new("stack/service-slow", cause, fix));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Words for a raw wait status.
fn describe_exit(status: i32) -> String {
    match status & 0x7f {
        0 => format!("exit code {}", (status >> 8) & 0xff),
        signal => format!("signal {signal}"),
    }
}

/// The end of a log as further lines of a message.
#[must_use]
pub(super) fn tail(log: &Path) -> String {
    let Ok(bytes) = std::fs::read(log) else { return String::new() };
    let start = bytes.len().saturating_sub(16 << 10);
    let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    last.iter().map(|line| format!("\n| {}", printable(&message_of(line), 200))).collect()
}

/// The message of a JSON log line with its error, or the line itself.
fn message_of(line: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(line) else { return line.to_owned() };
    let text = |key: &str| fields.get(key).and_then(serde_json::Value::as_str);
    let level = text("level").unwrap_or_default();
    match (text("message"), text("error")) {
        (Some(message), Some(error)) => format!("{level} {message}: {error}"),
        (Some(message), None) => format!("{level} {message}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn tail_shows_messages_of_json_logs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "plain\n{\"level\":\"ERROR\",\"message\":\"cannot start\",\"error\":\"port in use\"}\n").unwrap();

        assert_eq!(tail(file.path()), "\n| plain\n| ERROR cannot start: port in use");
    }

    #[test]
    fn exit_statuses_are_words() {
        assert_eq!(describe_exit(0x0100), "exit code 1");
        assert_eq!(describe_exit(9), "signal 9");
    }
}
