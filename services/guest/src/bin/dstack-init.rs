//! PID 1 of the initrd and of the root, the boot process, and the small commands that scripts call.

use std::process::ExitCode;

use dstack_guest::{boot::sequence, boot_clock::Timeline, command::SystemRunner, console, initrd, pid_one, small_commands};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let is_first = nix::unistd::getpid().as_raw() == 1;
    if is_first && initrd::is_initrd() {
        initrd_stage()
    }
    if is_first {
        pid_one::run()
    }
    if let Some(code) = small_commands::run(&name, &arguments) {
        return ExitCode::from(code);
    }
    if arguments.first().is_some_and(|argument| argument == pid_one::BOOT_ARGUMENT) {
        return ExitCode::from(sequence::run());
    }
    console::line("dstack-init is PID 1 of dstack-os; called otherwise it does nothing");
    ExitCode::from(2)
}

fn initrd_stage() -> ! {
    let timeline = Timeline::default();
    timeline.mark("kernel");
    let outcome = initrd::prepare().and_then(|()| {
        timeline.mark("initrd");
        initrd::enter_root(&SystemRunner, &timeline)
    });
    let Err(error) = outcome;
    pid_one::report(&dstack_guest::describe("initrd", &error));
    pid_one::power_off()
}
