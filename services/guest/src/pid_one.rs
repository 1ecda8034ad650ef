//! PID 1 of the root: one loop that reaps, forwards signals and ends the machine.
//!
//! It starts one child, the boot process, which does everything that can fail. When that child ends, for whatever
//! reason, PID 1 stops all processes, unmounts and powers off. It never starts a shell and never panics the kernel.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use dstack_api::wire::guest_event;
use nix::{
    errno::Errno,
    sys::{
        reboot::{RebootMode, reboot},
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sync},
};

use crate::{console, host_notify, initrd, mounts};

/// Exit code of the boot process that asks for power off.
pub const EXIT_POWER_OFF: u8 = 0;
/// Exit code of the boot process that asks for a reboot.
pub const EXIT_REBOOT: u8 = 10;
/// Exit code of the boot process after it told the host why it failed.
pub const EXIT_BOOT_FAILED: u8 = 20;
/// Argument that makes `dstack-init` the boot process.
pub const BOOT_ARGUMENT: &str = "boot";

const TERM_PATIENCE: Duration = Duration::from_secs(3);
const NOTIFY_PATIENCE: Duration = Duration::from_secs(5);

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    PowerOff,
    Reboot,
}

/// Runs as PID 1 until the machine is off.
pub fn run() -> ! {
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        report(&format!("init: block signals: {error}"));
        end(Ending::PowerOff);
    }
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(initrd::NEXT_INIT));
    let ending = match Command::new(program).arg(BOOT_ARGUMENT).spawn() {
        Ok(child) => match i32::try_from(child.id()) {
            Ok(pid) => supervise(Pid::from_raw(pid), &signals),
            Err(_) => Ending::PowerOff,
        },
        Err(error) => {
            report(&format!("init: start the boot process: {error}"));
            Ending::PowerOff
        }
    };
    end(ending)
}

/// Reaps every process that ends until the boot process does; passes requests to end the machine on to it.
fn supervise(boot: Pid, signals: &SigSet) -> Ending {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(ending) = reap(boot) {
                    return ending;
                }
            }
            Ok(_) => drop(kill(boot, Signal::SIGTERM)),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn reap(boot: Pid) -> Option<Ending> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(status) if status.pid() == Some(boot) => return Some(judge(status)),
            Ok(_) | Err(_) => {}
        }
    }
}

fn judge(status: WaitStatus) -> Ending {
    match status {
        WaitStatus::Exited(_, code) if code == i32::from(EXIT_POWER_OFF) => Ending::PowerOff,
        WaitStatus::Exited(_, code) if code == i32::from(EXIT_REBOOT) => Ending::Reboot,
        WaitStatus::Exited(_, code) if code == i32::from(EXIT_BOOT_FAILED) => {
            console::line(format_args!("boot failed, exit code {code}"));
            Ending::PowerOff
        }
        other => {
            report(&format!("init: the boot process ended unexpectedly: {other:?} [guest/init-crashed]"));
            Ending::PowerOff
        }
    }
}

/// Tells serial console and host about a failure that nobody else can report.
pub fn report(cause: &str) {
    console::line(cause);
    if let Err(error) = host_notify::notify(host_notify::HostAddress::DEFAULT, guest_event::BOOT_ERROR, cause, NOTIFY_PATIENCE) {
        console::line(format_args!("host was not told: {error}"));
    }
}

/// Ends the machine at once, from the initrd.
pub fn power_off() -> ! {
    end(Ending::PowerOff)
}

fn end(ending: Ending) -> ! {
    stop_processes();
    sync();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in mounts::unmount_all(&table) {
        console::line(format_args!("{} stays mounted", point.display()));
    }
    sync();
    let (mode, word) = match ending {
        Ending::PowerOff => (RebootMode::RB_POWER_OFF, "powering off"),
        Ending::Reboot => (RebootMode::RB_AUTOBOOT, "rebooting"),
    };
    console::line(word);
    let Err(error) = reboot(mode);
    console::line(format_args!("{word}: {error}"));
    std::process::exit(1)
}

/// Asks all processes to end, then ends them. Does nothing unless it runs as PID 1.
fn stop_processes() {
    if !nix::unistd::getpid().eq(&Pid::from_raw(1)) {
        return;
    }
    let all = Pid::from_raw(-1);
    let _ = kill(all, Signal::SIGTERM);
    let deadline = Instant::now() + TERM_PATIENCE;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
    }
    let _ = kill(all, Signal::SIGKILL);
    while waitpid(None, Some(WaitPidFlag::empty())).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agreed_code_reboots() {
        let pid = Pid::from_raw(2);

        assert_eq!(judge(WaitStatus::Exited(pid, 10)), Ending::Reboot);
        assert_eq!(judge(WaitStatus::Exited(pid, 0)), Ending::PowerOff);
        assert_eq!(judge(WaitStatus::Exited(pid, 20)), Ending::PowerOff);
    }
}
