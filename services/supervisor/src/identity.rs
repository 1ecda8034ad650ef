//! Which process a pid meant when it was written down.

use std::{fs, io, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// Variable that marks a process as ours while its pid is not yet in the table.
pub(crate) const MARKER: &str = "DSTACK_LAUNCH";

/// A process across restarts of this daemon: pids are reused, pid with start time and boot id is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    start_time: u64,
    boot_id: String,
}

impl Identity {
    /// Of a process that exists now.
    ///
    /// Errors: it is gone.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// Opens the process this identity means; `None` when it has ended.
    pub(crate) fn open(&self) -> Option<OwnedFd> {
        if boot_id().ok()? != self.boot_id {
            return None;
        }
        let fd = open_pid(self.pid).ok()?;
        // Read after opening: the descriptor cannot change its process any more.
        (start_time(self.pid).ok()? == self.start_time).then_some(fd)
    }
}

/// A pidfd.
///
/// Errors: no such process.
pub(crate) fn open_pid(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// The process whose environment carries `MARKER=<token>`.
pub(crate) fn find_by_marker(token: &str) -> Option<Identity> {
    let wanted = format!("{MARKER}={token}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()).then(|| Identity::of(pid).ok())?
    })
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected form of /proc/<pid>/stat"))
}

/// The name in field 2 may hold anything, even `) (`; the fields after its last `)` are plain.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_time_behind_a_hostile_name() {
        let stat = "42 (a) R 1 (x) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 100 200";

        assert_eq!(parse_start_time(stat), Some(987_654));
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Identity::of(std::process::id()).unwrap();

        assert!(me.open().is_some());
        assert!(Identity { start_time: me.start_time + 1, ..me.clone() }.open().is_none());
        assert!(Identity { boot_id: "other".to_owned(), ..me }.open().is_none());
    }
}
