//! Waiting for a boot, with progress.

use std::time::Duration;

use dstack_api::vmm::VmInfo;
use tokio::time::Instant;

use super::Vmm;
use crate::{
    failure::{Failure, Outcome},
    output::printable,
    progress::Progress,
};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until the guest says that its containers run.
///
/// Errors: the guest failed (with its own words), the VM ended, or the deadline passed; the VM is left as it is.
pub(crate) async fn wait_for_boot(vmm: &Vmm, id: &str, deadline: Duration, progress: &Progress) -> Outcome<VmInfo> {
    let mut step = progress.step("boot");
    let end = Instant::now() + deadline;
    loop {
        let vm = vmm.get(id).await?;
        if let Some(failure) = failed(&vm) {
            return Err(failure);
        }
        if vm.boot_progress == "done" {
            step.done("");
            return Ok(vm);
        }
        step.update(if vm.boot_progress.is_empty() { "starting QEMU" } else { &vm.boot_progress });
        if Instant::now() >= end {
            let cause = format!("the guest is still at `{}` after {} s", printable(&vm.boot_progress, 60), deadline.as_secs());
            return Err(Failure::new(
                "boot/slow",
                cause,
                format!("watch it with `dstack logs -f {}`, or give it more time with --timeout", vm.name),
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn failed(vm: &VmInfo) -> Option<Failure> {
    let fix = format!("read `dstack logs {}`; remove the VM with `dstack rm -f {}`", vm.name, vm.name);
    if !vm.boot_error.is_empty() {
        // The guest's words may carry a code in brackets, as every error of ours does.
        let text = printable(&vm.boot_error, 600);
        let while_doing =
            if vm.boot_progress.is_empty() { String::new() } else { format!(" while `{}`", printable(&vm.boot_progress, 60)) };
        let failure = Failure::new("boot/failed", format!("{text}{while_doing}"), fix);
        return Some(failure.during(format!("{} did not boot", vm.name)));
    }
    match vm.status.as_str() {
        "exited" => Some(
            Failure::new("boot/ended", format!("the VM ended{}", vm.exited_at.as_ref().map_or(String::new(), |at| format!(" {at}"))), fix)
                .during(format!("{} did not boot", vm.name)),
        ),
        "stopped" | "removing" => Some(Failure::new(
            "boot/stopped",
            format!("the VM is {} now", vm.status),
            "somebody else did this; start it with `dstack start`",
        )),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_guests_reason_is_shown_without_its_control_characters() {
        let vm = VmInfo {
            name: "hello".into(),
            status: "running".into(),
            boot_progress: "requesting app keys".into(),
            boot_error: "Boot denied: compose hash\x1b[2J is not allowed".into(),
            ..VmInfo::default()
        };

        insta::assert_snapshot!(failed(&vm).unwrap().report.for_program("dstack").to_string(), @r"
        dstack: error: hello did not boot [boot/failed]
          cause: Boot denied: compose hash [2J is not allowed while `requesting app keys`
          fix:   read `dstack logs hello`; remove the VM with `dstack rm -f hello`
        ");
    }

    #[test]
    fn a_running_vm_has_not_failed() {
        assert_eq!(failed(&VmInfo { status: "running".into(), ..VmInfo::default() }), None);
        assert!(failed(&VmInfo { status: "exited".into(), ..VmInfo::default() }).is_some());
    }
}
