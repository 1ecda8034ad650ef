//! Waiting for a boot, with progress.

use std::time::Duration;

use dstack_api::{vmm::VmInfo, wire::guest_event};
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
        if vm.boot_progress == guest_event::BOOT_DONE {
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

/// The guest's `cause [code]; fix: what to do`.
fn parts(text: &str) -> Option<(&str, &str, &str)> {
    let (front, fix) = text.rsplit_once("]; fix: ")?;
    let (cause, code) = front.rsplit_once(" [")?;
    let is_code = code.contains('/') && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '/' | '-'));
    is_code.then_some((cause, code, fix))
}

fn failed(vm: &VmInfo) -> Option<Failure> {
    let stage = if vm.boot_progress.is_empty() { String::new() } else { format!(" (at `{}`)", printable(&vm.boot_progress, 60)) };
    let console = format!("`dstack logs {}` shows the console, `dstack rm -f {}` removes the VM", vm.name, vm.name);
    let failure =
        |code: &str, cause: &str, fix: String| Some(Failure::new(code, cause, fix).during(format!("{} did not boot{stage}", vm.name)));
    if !vm.boot_error.is_empty() {
        let text = printable(&vm.boot_error, 800);
        return match parts(&text) {
            Some((cause, code, fix)) => failure(code, cause, format!("{fix}\n{console}")),
            None => failure("boot/failed", &text, console),
        };
    }
    match vm.status.as_str() {
        "exited" => {
            let at = vm.exited_at.as_ref().map_or(String::new(), |at| format!(" at {at}"));
            failure("boot/ended", &format!("QEMU ended{at}"), console)
        }
        "stopped" | "removing" => failure("boot/stopped", &format!("somebody else changed the VM; it is {} now", vm.status), console),
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
            boot_error: "KMS: compose hash\x1b[2J is not allowed [kms/denied]; fix: allow it".into(),
            ..VmInfo::default()
        };

        insta::assert_snapshot!(failed(&vm).unwrap().report.for_program("dstack").to_string(), @r"
        dstack: error: hello did not boot (at `requesting app keys`) [kms/denied]
          cause: KMS: compose hash [2J is not allowed
          fix:   allow it
                 `dstack logs hello` shows the console, `dstack rm -f hello` removes the VM
        ");
    }

    #[test]
    fn a_running_vm_has_not_failed() {
        assert_eq!(failed(&VmInfo { status: "running".into(), ..VmInfo::default() }), None);
        assert!(failed(&VmInfo { status: "exited".into(), ..VmInfo::default() }).is_some());
    }
}
