//! `dstack stop`, `start` and `rm`.

use std::{io::IsTerminal as _, time::Duration};

use dstack_api::vmm::{Id, VmInfo};
use serde::Serialize;
use tokio::time::Instant;

use super::{Timeline, Vmm, short, wait_for_boot};
use crate::{
    args::{RmArgs, StartArgs, StopArgs},
    ask::confirm,
    deploy::first_answer,
    failure::{Failure, Outcome},
    output::Output,
    progress::{Progress, Step},
};

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Cutting the power and removing a VM's files take at most this long.
const HARD_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Done {
    id: String,
    name: String,
    status: String,
}

impl Done {
    fn new(vm: &VmInfo, status: &str) -> Self {
        Self { id: vm.id.clone(), name: vm.name.clone(), status: status.to_owned() }
    }
}

fn is_up(vm: &VmInfo) -> bool {
    matches!(vm.status.as_str(), "running" | "stopping")
}

/// Stops a VM: the guest is asked first, then its power is cut.
///
/// Errors: unknown VM, or it does not end.
pub(crate) async fn stop(args: &StopArgs, output: Output) -> Outcome {
    let vmm = Vmm::connect(&args.vm.vmm)?;
    let vm = vmm.find(&args.vm.name).await?;
    if is_up(&vm) {
        let mut step = Progress::new(output).step(&format!("stop {}", vm.name));
        stop_vm(&vmm, &vm, args.force, Duration::from_secs(args.timeout), &mut step).await?;
        step.done("");
    }
    output.result(&Done::new(&vm, "stopped"), |_| format!("{} is stopped; its disk is kept.", vm.name))
}

async fn stop_vm(vmm: &Vmm, vm: &VmInfo, force: bool, patience: Duration, step: &mut Step) -> Outcome {
    let id = Id { id: vm.id.clone() };
    if !force {
        step.update("waiting for the guest");
        vmm.api.shutdown_vm(&id).await.map_err(|error| vmm.explain(error))?;
        if wait_until_down(vmm, &vm.id, patience).await? {
            return Ok(());
        }
        step.update("the guest does not end; cutting the power");
    }
    vmm.api.stop_vm(&id).await.map_err(|error| vmm.explain(error))?;
    if wait_until_down(vmm, &vm.id, HARD_DEADLINE).await? {
        return Ok(());
    }
    Err(Failure::new("vm/not-stopped", format!("{} still runs", vm.name), "look at the VMM's log"))
}

async fn wait_until_down(vmm: &Vmm, id: &str, patience: Duration) -> Outcome<bool> {
    let end = Instant::now() + patience;
    loop {
        if !is_up(&vmm.get(id).await?) {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Starts a stopped VM and waits for its boot.
///
/// Errors: unknown VM, or its boot failed.
pub(crate) async fn start(args: &StartArgs, output: Output) -> Outcome {
    let vmm = Vmm::connect(&args.vm.vmm)?;
    let vm = vmm.find(&args.vm.name).await?;
    vmm.api.start_vm(&Id { id: vm.id.clone() }).await.map_err(|error| vmm.explain(error))?;
    if args.no_wait {
        return output.result(&Done::new(&vm, "starting"), |_| format!("{} is starting.", vm.name));
    }
    let (patience, progress) = (Duration::from_secs(args.timeout), Progress::new(output));
    let booted = wait_for_boot(&vmm, &vm.id, patience, &progress).await?;
    let mut timeline = Timeline::of(&booted);
    if let Some(ms) = first_answer(&booted, patience, &progress).await {
        timeline.push("first HTTP answer", ms);
    }
    let report = serde_json::json!({ "id": vm.id, "name": vm.name, "status": "running", "timeline": timeline });
    output.result(&report, |palette| format!("{} runs.\n{}", vm.name, timeline.render(palette)))
}

/// Removes VMs with their disks.
///
/// Errors: unknown VM, a running one without `--force`, or a refusal.
pub(crate) async fn rm(args: &RmArgs, output: Output) -> Outcome {
    let vmm = Vmm::connect(&args.vmm)?;
    let mut vms = Vec::new();
    for name in &args.names {
        vms.push(vmm.find(name).await?);
    }
    if let Some(running) = vms.iter().find(|vm| is_up(vm))
        && !args.force
    {
        let cause = format!("{} is {}", running.name, running.status);
        return Err(Failure::new("vm/running", cause, format!("stop it with `dstack stop {}`, or add --force", running.name)));
    }
    if !args.force && std::io::stdin().is_terminal() {
        let names: Vec<String> = vms.iter().map(|vm| format!("{} ({})", vm.name, short(&vm.id))).collect();
        confirm(&format!("Remove {} with all data?", names.join(", ")))?;
    }
    let mut removed = Vec::new();
    for vm in &vms {
        let mut step = Progress::new(output).step(&format!("remove {}", vm.name));
        if is_up(vm) {
            stop_vm(&vmm, vm, true, HARD_DEADLINE, &mut step).await?;
        }
        vmm.api.remove_vm(&Id { id: vm.id.clone() }).await.map_err(|error| vmm.explain(error))?;
        wait_until_gone(&vmm, &vm.id).await?;
        step.done("");
        removed.push(Done::new(vm, "removed"));
    }
    output.result(&removed, |_| String::new())
}

async fn wait_until_gone(vmm: &Vmm, id: &str) -> Outcome {
    let end = Instant::now() + HARD_DEADLINE;
    loop {
        match vmm.get(id).await {
            Err(failure) if failure.report.code == "vm/gone" => return Ok(()),
            Err(failure) => return Err(failure),
            Ok(vm) if Instant::now() >= end => {
                return Err(Failure::new("vm/not-removed", format!("{} is still {}", vm.name, vm.status), "look at the VMM's log"));
            }
            Ok(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
