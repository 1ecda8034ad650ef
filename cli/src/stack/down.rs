//! `dstack down`.

use std::{fs, path::Path, time::Duration};

use dstack_api::{
    supervisor::ProcessStatus,
    vmm::{Id, StatusRequest, VmmClient},
};
use dstack_rpc::Client;
use serde::Serialize;
use tokio::time::Instant;

use super::{LocalStack, supervisor::Supervisor, up::lock};
use crate::{
    args::DownArgs,
    failure::{Failure, Outcome},
    home::Home,
    output::{Output, Tone},
    progress::Progress,
};

/// Guests get this long to end by themselves.
const GUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The supervisor gets this long to stop everything.
const STOP_DEADLINE: Duration = Duration::from_secs(40);

#[derive(Debug, Serialize)]
struct Stopped {
    stopped: Vec<String>,
    purged: bool,
}

/// Stops the guests, the services and the supervisor.
///
/// Errors: something could not be stopped or removed.
pub(crate) async fn down(home: &Home, args: &DownArgs, output: Output) -> Outcome {
    if !home.root().exists() {
        return output.result(&Stopped { stopped: Vec::new(), purged: false }, |_| "There is no local stack.".to_owned());
    }
    let _lock = lock(home)?;
    let progress = Progress::new(output);
    let supervisor = Supervisor::at(&home.supervisor_socket())?;
    let mut stopped = Vec::new();
    if supervisor.is_up().await {
        if let Some(local) = LocalStack::find(home)?
            && let Ok(client) = local.vmm()
        {
            stop_guests(&client.with_timeout(Duration::from_secs(20)), args, &progress).await;
        }
        stopped = stop_processes(home, &supervisor, &progress).await?;
    }
    if args.purge {
        let step = progress.step("remove state");
        purge(home)?;
        step.done(&home.root().display().to_string());
    }
    let report = Stopped { stopped, purged: args.purge };
    output.result(&report, |palette| match (report.stopped.is_empty(), report.purged) {
        (true, false) => "The local stack was not running.".to_owned(),
        (_, true) => palette.paint(Tone::Good, "The local stack is stopped and its state removed."),
        (false, false) => {
            palette.paint(Tone::Good, "The local stack is stopped.") + " Its state is kept; `dstack down --purge` removes it."
        }
    })
}

/// Asks running guests to end. What does not end in time is stopped with the processes.
async fn stop_guests(client: &Client, args: &DownArgs, progress: &Progress) {
    let vmm = VmmClient(client.clone());
    let Ok(status) = vmm.status(&StatusRequest::default()).await else { return };
    let is_up = |status: &str| matches!(status, "running" | "starting" | "stopping");
    let running: Vec<_> = status.vms.into_iter().filter(|vm| is_up(&vm.status)).collect();
    if running.is_empty() {
        return;
    }
    let mut step = progress.step(if running.len() == 1 { "1 guest" } else { "guests" });
    for vm in &running {
        let id = Id { id: vm.id.clone() };
        // With --purge or --now nobody wants to read the disk again.
        let asked = if args.purge || args.now { vmm.stop_vm(&id).await } else { vmm.shutdown_vm(&id).await };
        if let Err(error) = asked {
            step.update(&format!("{}: {}", vm.name, error.message));
        }
    }
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        let left = match vmm.status(&StatusRequest { brief: true, ..StatusRequest::default() }).await {
            Ok(status) => status.vms.into_iter().filter(|vm| is_up(&vm.status)).map(|vm| vm.name).collect::<Vec<_>>(),
            Err(_) => return,
        };
        if left.is_empty() {
            step.done("stopped");
            return;
        }
        if Instant::now() >= end {
            step.skipped(&format!("{} did not end in time and lose power", left.join(", ")));
            return;
        }
        step.update(&format!("waiting for {}", left.join(", ")));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn stop_processes(home: &Home, supervisor: &Supervisor, progress: &Progress) -> Outcome<Vec<String>> {
    let step = progress.step("services");
    let processes = supervisor.list().await?;
    let running: Vec<_> =
        processes.into_iter().filter(|info| info.state.status == ProcessStatus::Running).map(|info| info.config.id).collect();
    // The VMM first, so that it does not take the end of its VMs for crashes.
    if running.iter().any(|id| id == super::up::VMM) {
        supervisor.remove(super::up::VMM).await?;
    }
    supervisor
        .shut_down()
        .await
        .or_else(|failure| if failure.report.code == dstack_api::RpcError::UNREACHABLE { Ok(()) } else { Err(failure) })?;
    let end = Instant::now() + STOP_DEADLINE;
    while supervisor.is_up().await || home.supervisor_socket().exists() {
        if Instant::now() >= end {
            let fix = format!("read {}", home.logs().join("supervisor.log").display());
            return Err(Failure::new("stack/not-stopped", "the supervisor did not end in time", fix));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    step.done(&running.join(", "));
    Ok(running)
}

/// Removes everything but the images: OS images and packed container images are made again only at great expense.
fn purge(home: &Home) -> Outcome {
    let keep = [home.images(), home.volumes()];
    let entries = fs::read_dir(home.root()).map_err(|error| Failure::io("reading", home.root(), &error))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if !keep.contains(&path) {
            remove(&path).map_err(|error| Failure::io("removing", &path, &error))?;
        }
    }
    for folder in keep {
        // Empty folders go, full ones stay.
        let _not_empty = fs::remove_dir(folder);
    }
    let _not_empty = fs::remove_dir(home.root());
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
