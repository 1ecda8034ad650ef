//! PID 1 of the initrd and of the root, the boot process, and the small commands that scripts call.

use std::process::ExitCode;

use dstack_guest::{
    boot_clock::Timeline,
    command::SystemRunner,
    initrd, pid_one,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let _ = name;
    if initrd::is_initrd() {
        initrd_stage()
    }
    if nix::unistd::getpid().as_raw() == 1 {
        pid_one::run()
    }
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
