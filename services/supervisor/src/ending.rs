//! How a process ended.

use std::os::fd::BorrowedFd;

use nix::sys::signal::Signal;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// End of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal { number: i32, dumped: bool },
    /// It was not our child, so the kernel told somebody else.
    Unknown,
}

impl Ending {
    /// Whether the process is a child of ours that has ended and was not waited for.
    pub(crate) fn is_collectable(pidfd: BorrowedFd<'_>) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(pidfd), options), Ok(Some(_)))
    }

    /// Collects the status of a process that has ended, where it is our child.
    pub(crate) fn collect(pidfd: BorrowedFd<'_>) -> Self {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Self::Code(code),
                (None, Some(number)) => Self::Signal { number, dumped: status.dumped() },
                (None, None) => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// As `wait(2)` would have reported it.
    pub(crate) fn raw(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some((code & 0xff) << 8),
            Self::Signal { number, dumped } => Some(number | if dumped { 0x80 } else { 0 }),
            Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { number, dumped } => {
                match Signal::try_from(number) {
                    Ok(signal) => write!(f, "killed by {signal}")?,
                    Err(_) => write!(f, "killed by signal {number}")?,
                }
                f.write_str(if dumped { ", core dumped" } else { "" })
            }
            Self::Unknown => f.write_str("ended; its exit status is unknown because the supervisor was restarted meanwhile"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_in_words_and_as_wait_status() {
        let killed = Ending::Signal { number: 9, dumped: false };

        assert_eq!((killed.to_string().as_str(), killed.raw()), ("killed by SIGKILL", Some(9)));
        assert_eq!((Ending::Code(3).to_string().as_str(), Ending::Code(3).raw()), ("exited with code 3", Some(0x300)));
        assert_eq!(Ending::Unknown.raw(), None);
    }
}
