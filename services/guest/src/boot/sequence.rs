//! The boot process: walks the phases, then keeps the machine until somebody ends it.

use std::{path::Path, sync::Arc, time::Duration};

use dstack_api::UserFacing;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{
    children::{Children, ServiceEnded},
    control::{self, Order},
    host_config::HostConfigRead,
    host_share::UnverifiedShare,
    keys::open_attester,
    layout::Layout,
    network::Networking,
    root,
    workload::{self, Bench, WorkloadStarted},
};
use crate::{
    block_device,
    boot_clock::{TIMELINE_VARIABLE, Timeline},
    command::SystemRunner,
    console, describe,
    host_notify::{HostAddress, Notifier},
    pid_one::{EXIT_BOOT_FAILED, EXIT_POWER_OFF, EXIT_REBOOT},
};

const SHARE_PATIENCE: Duration = Duration::from_secs(10);
const NOTIFY_PATIENCE: Duration = Duration::from_secs(6);
const ENGINE_STOP_PATIENCE: Duration = Duration::from_secs(15);
/// Nothing of these is lost when they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Services without which the boot cannot go on.
const VITAL: [&str; 4] = ["containerd", "dockerd", "dstack-guest-agent", "dhcpcd"];

/// Why the boot ended: one line for the host.
#[derive(Debug)]
struct BootFailure {
    description: String,
}

/// Names the phase in which an error happened.
fn during<E: UserFacing>(phase: &'static str) -> impl FnOnce(E) -> BootFailure {
    move |error| BootFailure { description: describe(phase, &error) }
}

/// Everything the phases share.
struct Machine {
    layout: Layout,
    runner: SystemRunner,
    notifier: Notifier,
    children: Children,
    timeline: Timeline,
}

impl Machine {
    fn bench(&self) -> Bench<'_> {
        Bench { runner: &self.runner, layout: &self.layout, notifier: &self.notifier, children: &self.children, timeline: &self.timeline }
    }
}

/// Boots, keeps the application running, and returns the exit code for PID 1.
#[must_use]
pub fn run() -> u8 {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(live());
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            crate::pid_one::report(&format!("init: start the runtime: {error} [guest/init]"));
            EXIT_BOOT_FAILED
        }
    }
}

async fn live() -> u8 {
    let timeline = Timeline::resume(&std::env::var(TIMELINE_VARIABLE).unwrap_or_default());
    let layout = Layout::default();
    let early = Notifier::start(HostAddress::DEFAULT);
    if let Err(failure) = root::prepare(&layout).map_err(during("root")) {
        return give_up(&early, &failure);
    }
    timeline.mark("root");
    let (children, ended) = Children::new(layout.logs());
    let orders = match control::listen(&layout.control_socket()) {
        Ok(orders) => orders,
        Err(error) => return give_up(&early, &BootFailure { description: format!("root: listen for orders: {error} [guest/root]") }),
    };
    let machine = Arc::new(Machine { layout, runner: SystemRunner, notifier: early, children, timeline });
    let (lease, lease_seen) = watch::channel(false);
    let mut desk = OrderDesk { orders, ended, lease, machine: Arc::clone(&machine) };
    // A task of its own: a panic in a phase is a failed boot, not a silent end.
    let mut boot = tokio::spawn(boot(Arc::clone(&machine), lease_seen));
    let outcome = tokio::select! {
        outcome = &mut boot => outcome,
        ending = desk.serve(true) => {
            boot.abort();
            return match ending {
                Ending::Failed(failure) => give_up(&machine.notifier, &failure),
                Ending::Ordered(code) => shut_down(&machine, None, code).await,
            };
        }
    };
    let started = match outcome {
        Ok(Ok(started)) => started,
        Ok(Err(failure)) => return give_up(&machine.notifier, &failure),
        Err(error) => return give_up(&machine.notifier, &broke_off(error)),
    };
    machine.timeline.mark("done");
    machine.notifier.progress("done");
    machine.notifier.send("boot.timeline", &machine.timeline.json());
    console::line(format_args!("timeline {}", machine.timeline.json()));
    match desk.serve(false).await {
        Ending::Ordered(code) => shut_down(&machine, Some(started), code).await,
        Ending::Failed(failure) => give_up(&machine.notifier, &failure),
    }
}

async fn boot(machine: Arc<Machine>, lease: watch::Receiver<bool>) -> Result<WorkloadStarted, BootFailure> {
    let layout = &machine.layout;
    let network = Networking::start(layout, &machine.children, lease).map_err(during("network"))?;
    let root_directory = layout.root().to_owned();
    std::thread::spawn(move || root::prepare_ahead(&root_directory));
    workload::start_containerd(layout, &machine.children).map_err(during("engine"))?;

    let reader = Arc::clone(&machine);
    let measured = blocking(move || {
        let device = block_device::wait_for_serial(reader.layout.root(), block_device::SHARE_SERIAL, SHARE_PATIENCE).map_err(|error| {
            BootFailure {
                description: format!("host-share: {error} [guest/host-share-missing]; fix: start the VM with its share attached"),
            }
        })?;
        let share = UnverifiedShare::read(&device).map_err(during("host-share"))?;
        let config = HostConfigRead::from_share(&share, &reader.layout).map_err(during("host-share"))?;
        share.store(&reader.layout.host_shared()).map_err(during("host-share"))?;
        reader.timeline.mark("config");
        let attester = open_attester(&dstack_attester::Options::default()).map_err(during("measure"))?;
        let measured = config.measure(attester).map_err(during("measure"))?;
        reader.timeline.mark("measured");
        Ok(measured)
    })
    .await?;
    machine.notifier.send("instance.info", &serde_json::to_string(&measured.config.instance_info()).unwrap_or_default());
    let (opener, app) = (Arc::clone(&machine), measured.config.app.clone());
    let images = tokio::spawn(blocking(move || {
        let images = workload::open_volumes(&opener.runner, &opener.layout, &app).map_err(during("workload"))?;
        opener.timeline.mark("volumes");
        Ok(images)
    }));

    let network = network.ready().await.map_err(during("network"))?;
    machine.timeline.mark("network");
    machine.notifier.progress("requesting app keys");
    let keys = measured.obtain_keys(&network).await.map_err(during("keys"))?;
    machine.timeline.mark("keys");

    let unlocker = Arc::clone(&machine);
    let networked = blocking(move || {
        let unlocked = keys.unlock_disk(&unlocker.runner, &unlocker.layout, &unlocker.notifier).map_err(during("disk"))?;
        if !unlocked.environment.skipped.is_empty() {
            console::line(format_args!("variables that app-compose.json does not allow: {}", unlocked.environment.skipped.join(", ")));
        }
        unlocker.timeline.mark("disk");
        super::agent_setup::write_config(&unlocker.layout).map_err(during("agent"))?;
        Ok(unlocked.join_network(network))
    })
    .await?;
    let images = images.await.map_err(broke_off)??;
    blocking(move || networked.start_workload(&machine.bench(), &images).map_err(during("workload"))).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BootFailure> + Send + 'static) -> Result<T, BootFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(broke_off(error)),
    }
}

fn broke_off(error: tokio::task::JoinError) -> BootFailure {
    BootFailure { description: format!("init: a boot phase broke off: {error} [guest/init]") }
}

enum Ending {
    Ordered(u8),
    Failed(BootFailure),
}

/// Takes orders, and learns which services ended.
struct OrderDesk {
    orders: mpsc::UnboundedReceiver<Order>,
    ended: mpsc::UnboundedReceiver<ServiceEnded>,
    lease: watch::Sender<bool>,
    machine: Arc<Machine>,
}

impl OrderDesk {
    /// Serves until the machine is to end. `booting`: a vital service that ends now fails the boot.
    async fn serve(&mut self, booting: bool) -> Ending {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return Ending::Failed(BootFailure { description: "init: handle signals [guest/init]".to_owned() });
        };
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ending::Ordered(EXIT_POWER_OFF),
                Some(order) = self.orders.recv() => if let Some(code) = self.take(order) {
                    return Ending::Ordered(code);
                },
                Some(service) = self.ended.recv() => {
                    let ServiceEnded { name, status, log_tail } = service;
                    let description = format!("{name} ended: {status}: {log_tail} [guest/service-ended]");
                    if booting && VITAL.contains(&name) {
                        return Ending::Failed(BootFailure { description });
                    }
                    console::line(format_args!("{description}; it is started again"));
                }
            }
        }
    }

    fn take(&self, order: Order) -> Option<u8> {
        match order {
            Order::PowerOff => return Some(EXIT_POWER_OFF),
            Order::Reboot => return Some(EXIT_REBOOT),
            Order::NetworkUp => drop(self.lease.send(true)),
            Order::Notify { event, payload } => self.machine.notifier.send(&event, &payload),
            Order::Restart { service } => {
                let done = self.machine.children.restart(&service);
                console::line(format_args!("restart {}: {}", console::printable(&service), if done { "done" } else { "no such service" }));
            }
        }
        None
    }
}

fn give_up(notifier: &Notifier, failure: &BootFailure) -> u8 {
    console::line(format_args!("boot failed: {}", failure.description));
    notifier.send("boot.error", &failure.description);
    notifier.flush(NOTIFY_PATIENCE);
    EXIT_BOOT_FAILED
}

/// Stops application, engine and agent in that order; PID 1 does the rest.
async fn shut_down(machine: &Arc<Machine>, started: Option<WorkloadStarted>, code: u8) -> u8 {
    machine.notifier.send("shutdown.progress", "powering off");
    console::line("stopping");
    if let Some(started) = started {
        let stopper = Arc::clone(machine);
        let _ = tokio::task::spawn_blocking(move || started.stop(&stopper.bench())).await;
        console::line("application stopped");
    }
    machine.children.stop("dockerd", ENGINE_STOP_PATIENCE).await;
    console::line("container engine stopped");
    let rest = ["containerd", "dstack-guest-agent", "dhcpcd"].map(|service| machine.children.stop(service, STOP_PATIENCE));
    let [first, second, third] = rest;
    tokio::join!(first, second, third);
    console::line("services stopped");
    machine.notifier.flush(NOTIFY_PATIENCE);
    code
}

/// Handles a call of dhcpcd: writes `resolv.conf` and reports the lease.
///
/// Errors: the file cannot be written or nobody listens.
pub fn dhcp_event() -> std::io::Result<()> {
    if super::network::handle_dhcp_event(Path::new("/etc/resolv.conf"), |name| std::env::var(name).ok())? {
        control::send(&Layout::default().control_socket(), &Order::NetworkUp)?;
    }
    Ok(())
}
