//! The processes and what happens to them.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dstack_api::supervisor::{ProcessConfig, ProcessInfo, ProcessState, ProcessStatus};
use dstack_service::{clock::unix_seconds, log_file::Rotation, report::Report};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::killpg,
    unistd::Pid,
};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::watch;

use crate::{
    Config, Error,
    ending::Ending,
    identity::{Identity, find_by_marker, open_pid},
    launch::launch,
    table::{Record, Table},
};

/// How long a killed process may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const MAX_ID: usize = 128;
/// Enough for one table write and one log line.
const WATCH_STACK: usize = 256 << 10;

/// All processes of one table.
#[derive(Debug)]
pub struct Supervisor {
    table: Table,
    rotation: Rotation,
    grace: Duration,
    limits: &'static str,
    frozen: AtomicBool,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

#[derive(Debug)]
struct Process {
    record: Mutex<Record>,
    /// One start, stop or removal at a time.
    operation: tokio::sync::Mutex<()>,
    running: watch::Sender<bool>,
    /// Open while it runs.
    pidfd: Mutex<Option<Arc<OwnedFd>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    /// Opens the table and finds the processes that still run.
    ///
    /// Errors: the table is not accessible or belongs to another supervisor.
    pub fn open(config: &Config) -> Result<Arc<Self>, Error> {
        let supervisor = Arc::new(Self {
            table: Table::open(&config.state_dir)?,
            rotation: config.rotation(),
            grace: Duration::from_secs(config.stop_grace_seconds),
            limits: limits(),
            frozen: AtomicBool::new(false),
            processes: Mutex::default(),
        });
        for record in supervisor.table.load()? {
            supervisor.adopt(record);
        }
        Ok(supervisor)
    }

    /// Default time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Starts a process under a new id, or under one that does not run.
    ///
    /// Errors: it runs, or cannot be started; then its id is not taken.
    pub async fn deploy(self: &Arc<Self>, config: ProcessConfig) -> Result<(), Error> {
        check_id(&config.id)?;
        let fresh = Record {
            config: config.clone(),
            started: false,
            status: ProcessStatus::Stopped,
            ended: String::new(),
            launch: None,
            identity: None,
            started_at: None,
            stopped_at: None,
        };
        let (process, is_new) = {
            let mut processes = lock(&self.processes);
            let is_new = !processes.contains_key(&config.id);
            let process = processes.entry(config.id.clone()).or_insert_with(|| Process::new(fresh.clone()));
            (Arc::clone(process), is_new)
        };
        let operation = process.operation.lock().await;
        if *process.running.borrow() {
            return Err(Error::Running(config.id));
        }
        *lock(&process.record) = fresh;
        let result = self.start_locked(&process);
        drop(operation);
        if result.is_err() && is_new {
            lock(&self.processes).remove(&config.id);
            self.table.delete(&config.id)?;
        }
        result
    }

    /// Starts a known process; one that runs is left alone.
    ///
    /// Errors: unknown, or it cannot be started.
    pub async fn start(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let process = self.process(id)?;
        let _operation = process.operation.lock().await;
        if *process.running.borrow() {
            return Ok(());
        }
        self.start_locked(&process)
    }

    /// SIGTERM, after `grace` SIGKILL; returns when the process has ended.
    ///
    /// Errors: unknown, or it outlives SIGKILL.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let process = self.process(id)?;
        let _operation = process.operation.lock().await;
        let pidfd = {
            let mut record = lock(&process.record);
            record.started = false;
            self.table.save(&record)?;
            lock(&process.pidfd).clone()
        };
        let Some(pidfd) = pidfd else {
            let mut record = lock(&process.record);
            if record.status != ProcessStatus::Stopped {
                record.status = ProcessStatus::Stopped;
                self.table.save(&record)?;
            }
            return Ok(());
        };
        let mut running = process.running.subscribe();
        for (signal, deadline) in [(Signal::TERM, grace), (Signal::KILL, KILL_DEADLINE)] {
            if signal == Signal::TERM && grace.is_zero() {
                continue;
            }
            // Fails only when it has ended meanwhile.
            let _ended = pidfd_send_signal(&*pidfd, signal);
            if tokio::time::timeout(deadline, running.wait_for(|running| !running)).await.is_ok() {
                return Ok(());
            }
        }
        Err(Error::Unkillable(id.to_owned()))
    }

    /// Forgets a process that does not run; an unknown one is fine.
    ///
    /// Errors: it runs.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let Ok(process) = self.process(id) else { return Ok(()) };
        let _operation = process.operation.lock().await;
        if *process.running.borrow() {
            return Err(Error::Running(id.to_owned()));
        }
        self.table.delete(id)?;
        lock(&self.processes).remove(id);
        Ok(())
    }

    /// Forgets every process that does not run.
    ///
    /// Errors: the table cannot be written.
    pub async fn clear(&self) -> Result<(), Error> {
        for info in self.list() {
            match self.remove(&info.config.id).await {
                Ok(()) | Err(Error::Running(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All processes, by id.
    #[must_use]
    pub fn list(&self) -> Vec<ProcessInfo> {
        lock(&self.processes).values().map(|process| self.describe(process)).collect()
    }

    /// One process.
    #[must_use]
    pub fn info(&self, id: &str) -> Option<ProcessInfo> {
        self.process(id).ok().map(|process| self.describe(&process))
    }

    /// Starts nothing any more and stops everything.
    ///
    /// Errors: a process outlives SIGKILL.
    pub async fn shut_down(&self) -> Result<(), Error> {
        self.frozen.store(true, Ordering::SeqCst);
        let ids: Vec<String> = lock(&self.processes).keys().cloned().collect();
        let mut result = Ok(());
        for id in ids {
            let stopped = self.stop(&id, self.grace).await;
            result = result.and(stopped);
        }
        result
    }

    /// Rotates the output files of all processes.
    pub fn rotate_logs(&self) {
        for info in self.list() {
            for path in [&info.config.stdout, &info.config.stderr] {
                if !path.is_empty()
                    && let Err(error) = self.rotation.apply(Path::new(path))
                {
                    tracing::warn!(path, %error, "log cannot be rotated");
                }
            }
        }
    }

    fn process(&self, id: &str) -> Result<Arc<Process>, Error> {
        lock(&self.processes).get(id).cloned().ok_or_else(|| Error::Unknown(id.to_owned()))
    }

    fn describe(&self, process: &Process) -> ProcessInfo {
        let record = lock(&process.record).clone();
        ProcessInfo {
            config: record.config,
            state: ProcessState {
                status: record.status,
                started: record.started,
                pid: record.identity.map(|identity| identity.pid),
                started_at: record.started_at,
                stopped_at: record.stopped_at,
                ended: record.ended,
                limits: self.limits.to_owned(),
            },
        }
    }

    /// The caller holds the operation lock and has seen that the process does not run.
    fn start_locked(self: &Arc<Self>, process: &Arc<Process>) -> Result<(), Error> {
        if self.frozen.load(Ordering::SeqCst) {
            return Err(Error::Frozen);
        }
        let mut record = lock(&process.record);
        let token = uuid::Uuid::new_v4().simple().to_string();
        record.launch = Some(token.clone());
        record.started = true;
        record.ended.clear();
        self.table.save(&record)?;
        let launched = launch(&record.config, &token, &self.rotation).and_then(|pid| Ok((Identity::of(pid)?, open_pid(pid)?)));
        record.launch = None;
        match launched {
            Ok((identity, pidfd)) => {
                tracing::info!(process = record.config.id, pid = identity.pid, "process started");
                record.identity = Some(identity);
                record.status = ProcessStatus::Running;
                record.started_at = Some(unix_seconds());
                record.stopped_at = None;
                self.watch(process, pidfd);
                // A table that cannot be written is no reason to kill what runs; the marker finds it again.
                if let Err(error) = self.table.save(&record) {
                    tracing::error!(error = %Report::new(&error), "process started, table not written");
                }
                Ok(())
            }
            Err(source) => {
                record.started = false;
                record.status = ProcessStatus::Error(source.to_string());
                self.table.save(&record)?;
                Err(Error::Launch { command: record.config.command.clone(), source })
            }
        }
    }

    fn adopt(self: &Arc<Self>, mut record: Record) {
        if let Some(token) = record.launch.take() {
            record.identity = find_by_marker(&token);
            record.status = ProcessStatus::Running;
            record.started_at = record.started_at.or_else(|| Some(unix_seconds()));
        }
        let pidfd = record.identity.as_ref().and_then(Identity::open);
        let id = record.config.id.clone();
        if pidfd.is_none() && record.status == ProcessStatus::Running {
            tracing::warn!(process = id, "process ended while no supervisor ran");
            record.ended_as(Ending::Unknown);
        }
        if let Err(error) = self.table.save(&record) {
            tracing::error!(error = %Report::new(&error), "table not written");
        }
        let process = Process::new(record);
        lock(&self.processes).insert(id.clone(), Arc::clone(&process));
        if let Some(pidfd) = pidfd {
            tracing::info!(process = id, "process adopted");
            self.watch(&process, pidfd);
        }
    }

    /// Marks the process as running and follows it until it ends.
    fn watch(self: &Arc<Self>, process: &Arc<Process>, pidfd: OwnedFd) {
        let pidfd = Arc::new(pidfd);
        *lock(&process.pidfd) = Some(Arc::clone(&pidfd));
        process.running.send_replace(true);
        let (supervisor, process) = (Arc::clone(self), Arc::clone(process));
        // A thread, since a pidfd in the async reactor needs unsafe code; it sleeps in poll(2).
        let watcher =
            std::thread::Builder::new().name("watch".to_owned()).stack_size(WATCH_STACK).spawn(move || match wait_readable(&pidfd) {
                Ok(()) => supervisor.ended(&process, &pidfd),
                Err(error) => tracing::error!(%error, "process cannot be watched; its end will not be noticed"),
            });
        if let Err(error) = watcher {
            tracing::error!(%error, "process cannot be watched; its end will not be noticed");
        }
    }

    fn ended(&self, process: &Process, pidfd: &OwnedFd) {
        {
            let mut record = lock(&process.record);
            // What it left behind goes with it; until a child is waited for, its group id cannot be anyone else's.
            if Ending::is_collectable(pidfd.as_fd())
                && let Some(pid) = record.identity.as_ref().and_then(|identity| i32::try_from(identity.pid).ok())
            {
                let _none_left = killpg(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            let ending = Ending::collect(pidfd.as_fd());
            record.ended_as(ending);
            tracing::info!(process = record.config.id, ended = record.ended, "process ended");
            if let Err(error) = self.table.save(&record) {
                tracing::error!(error = %Report::new(&error), "table not written");
            }
        }
        *lock(&process.pidfd) = None;
        process.running.send_replace(false);
    }
}

impl Process {
    fn new(record: Record) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            operation: tokio::sync::Mutex::default(),
            running: watch::Sender::new(false),
            pidfd: Mutex::default(),
        })
    }
}

impl Record {
    fn ended_as(&mut self, ending: Ending) {
        self.ended = ending.to_string();
        self.identity = None;
        self.stopped_at = Some(unix_seconds());
        self.status = match (self.started, ending.raw()) {
            (false, _) => ProcessStatus::Stopped,
            (true, Some(raw)) => ProcessStatus::Exited(raw),
            (true, None) => ProcessStatus::Error(self.ended.clone()),
        };
    }
}

/// A pidfd is readable once its process has ended.
fn wait_readable(pidfd: &OwnedFd) -> nix::Result<()> {
    loop {
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = id.len() <= MAX_ID && id.bytes().all(plain) && id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(Error::BadId(id.chars().take(MAX_ID).collect())) }
}

fn limits() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "none: setting cgroup limits is not implemented"
    } else {
        "none: this host has no cgroup v2"
    }
}
