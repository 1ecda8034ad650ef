//! The long-running programs of the guest: started, watched, started again when they end, stopped in order.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// How long a program may take to end before it is started anew.
const RESTART_PATIENCE: Duration = Duration::from_secs(15);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A log beyond this is moved away; one older part is kept.
const MAX_LOG_BYTES: usize = 1 << 20;

/// A program to keep running.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    name: &'static str,
    program: String,
    args: Vec<String>,
    first_args: Vec<String>,
    socket: Option<Arc<OwnedFd>>,
}

impl ServiceSpec {
    /// A program under a name.
    #[must_use]
    pub fn new(name: &'static str, program: &str, args: &[&str]) -> Self {
        Self {
            name,
            program: program.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            first_args: Vec::new(),
            socket: None,
        }
    }

    /// With a listening socket as the standard input of each start. It stays open between them: whoever connects meanwhile waits, and
    /// whoever mounted the socket's file reaches every later start.
    #[must_use]
    pub fn with_socket(mut self, socket: OwnedFd) -> Self {
        self.socket = Some(Arc::new(socket));
        self
    }

    /// With more arguments at its first start only.
    #[must_use]
    pub fn at_first(mut self, args: &[&str]) -> Self {
        self.first_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }
}

/// A program ended although nobody asked it to.
#[derive(Debug, Clone)]
pub struct ServiceEnded {
    /// Its name.
    pub name: &'static str,
    /// How, in words.
    pub status: String,
    /// The end of its log.
    pub log_tail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Restart,
    Stop(Duration),
}

#[derive(Debug)]
struct Running {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Children {
    log_directory: PathBuf,
    ended: mpsc::UnboundedSender<ServiceEnded>,
    running: Arc<Mutex<BTreeMap<&'static str, Running>>>,
}

impl Children {
    /// None yet. Their logs go to `log_directory`, on tmpfs: what programs say stays in the guest.
    #[must_use]
    pub fn new(log_directory: PathBuf) -> (Self, mpsc::UnboundedReceiver<ServiceEnded>) {
        let (ended, reports) = mpsc::unbounded_channel();
        (Self { log_directory, ended, running: Arc::default() }, reports)
    }

    /// Starts a program and keeps it running.
    pub fn start(&self, spec: ServiceSpec) {
        let (wish, wishes) = watch::channel(Wish::Run);
        let name = spec.name;
        let task = tokio::spawn(keep_running(spec, self.log_directory.clone(), self.ended.clone(), wishes));
        if let Ok(mut running) = self.running.lock() {
            running.insert(name, Running { wish, task });
        }
    }

    /// Ends a program; it is started again at once. Returns whether there is one of that name.
    #[must_use]
    pub fn restart(&self, name: &str) -> bool {
        let Ok(running) = self.running.lock() else { return false };
        running.get(name).is_some_and(|service| service.wish.send(Wish::Restart).is_ok())
    }

    /// Ends a program and waits for it: SIGTERM, and SIGKILL after `patience`.
    pub async fn stop(&self, name: &str, patience: Duration) {
        let service = self.running.lock().ok().and_then(|mut running| running.remove(name));
        let Some(service) = service else { return };
        let _ = service.wish.send(Wish::Stop(patience));
        if tokio::time::timeout(patience + Duration::from_secs(1), service.task).await.is_err() {
            crate::console::line(format_args!("{name} did not end"));
        }
    }

    /// The end of a program's log.
    #[must_use]
    pub fn log_tail(&self, name: &str) -> String {
        tail(&self.log_directory.join(format!("{name}.log")))
    }
}

async fn keep_running(mut spec: ServiceSpec, logs: PathBuf, ended: mpsc::UnboundedSender<ServiceEnded>, mut wishes: watch::Receiver<Wish>) {
    let path = logs.join(format!("{}.log", spec.name));
    loop {
        let first_args = std::mem::take(&mut spec.first_args);
        let status = match spawn(&spec, &first_args) {
            Err(error) => error.to_string(),
            Ok(mut child) => {
                let logged =
                    [child.stdout.take().map(|pipe| log(pipe, path.clone())), child.stderr.take().map(|pipe| log(pipe, path.clone()))];
                let outcome = tokio::select! {
                    status = child.wait() => Some(status.map_or_else(|error| error.to_string(), |status| status.to_string())),
                    _ = wishes.changed() => None,
                };
                match outcome {
                    Some(status) => {
                        for task in logged.into_iter().flatten() {
                            let _ = tokio::time::timeout(Duration::from_millis(200), task).await;
                        }
                        status
                    }
                    None => {
                        let wish = *wishes.borrow_and_update();
                        end(&mut child, if let Wish::Stop(patience) = wish { patience } else { RESTART_PATIENCE }).await;
                        if wish != Wish::Restart {
                            return;
                        }
                        continue;
                    }
                }
            }
        };
        let _ = ended.send(ServiceEnded { name: spec.name, status, log_tail: tail(&path) });
        tokio::select! {
            () = tokio::time::sleep(RESTART_PAUSE) => {}
            _ = wishes.wait_for(|wish| matches!(wish, Wish::Stop(_))) => return,
        }
    }
}

fn spawn(spec: &ServiceSpec, more: &[String]) -> std::io::Result<Child> {
    let stdin = match &spec.socket {
        Some(socket) => Stdio::from(socket.try_clone()?),
        None => Stdio::null(),
    };
    Command::new(&spec.program)
        .args(&spec.args)
        .args(more)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

async fn end(child: &mut Child, patience: Duration) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn log(mut pipe: impl AsyncRead + Unpin + Send + 'static, path: PathBuf) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0_u8; 16 << 10];
        while let Ok(got) = pipe.read(&mut buffer).await {
            let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else { return };
            if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES as u64) {
                let _ = fs::rename(&path, path.with_extension("log.1"));
            }
            if let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(&path) {
                let _ = file.write_all(bytes);
            }
        }
    })
}

fn tail(path: &std::path::Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(bytes.len().saturating_sub(800)..).unwrap_or_default()).into_owned();
    crate::console::printable(&text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_ends_is_reported_with_its_last_words() {
        let logs = tempfile::tempdir().unwrap();
        let (children, mut reports) = Children::new(logs.path().to_owned());

        children.start(ServiceSpec::new("x", "sh", &["-c", "echo last words >&2; exit 3"]));
        let report = reports.recv().await.unwrap();

        assert_eq!((report.name, report.log_tail.as_str()), ("x", "last words"));
        assert!(report.status.contains('3'), "{}", report.status);
    }

    #[tokio::test]
    async fn arguments_of_the_first_start_are_not_used_again() {
        let logs = tempfile::tempdir().unwrap();
        let (children, mut reports) = Children::new(logs.path().to_owned());

        children.start(ServiceSpec::new("x", "sh", &["-c", "echo got:$*", "x"]).at_first(&["once"]));
        let (first, second) = (reports.recv().await.unwrap(), reports.recv().await.unwrap());
        children.stop("x", Duration::from_secs(5)).await;

        assert_eq!(first.log_tail, "got:once");
        assert_eq!(second.log_tail, "got:once got:");
    }

    #[tokio::test]
    async fn a_socket_outlives_the_program_that_serves_it() {
        let logs = tempfile::tempdir().unwrap();
        let (children, mut reports) = Children::new(logs.path().to_owned());
        let path = logs.path().join("x.sock");
        let socket = dstack_rpc::bind_unix(&path, 0o600).unwrap();
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let before = inode();

        // Nobody accepts; the queue does.
        let serve = "test -S /dev/stdin && echo serving";
        children.start(ServiceSpec::new("x", "sh", &["-c", serve]).with_socket(socket.into()));
        let (first, second) = (reports.recv().await.unwrap(), reports.recv().await.unwrap());
        let waiting = std::os::unix::net::UnixStream::connect(&path);

        assert_eq!((first.log_tail.as_str(), second.log_tail.as_str()), ("serving", "serving serving"));
        assert!(waiting.is_ok(), "{waiting:?}");
        assert_eq!(inode(), before);
        children.stop("x", Duration::from_secs(5)).await;
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err(), "after the last start nobody holds it");
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_is_reported() {
        let logs = tempfile::tempdir().unwrap();
        let (children, mut reports) = Children::new(logs.path().to_owned());

        children.start(ServiceSpec::new("x", "/nonexistent", &[]));

        assert!(reports.recv().await.unwrap().status.contains("No such file"));
    }

    #[tokio::test]
    async fn restart_and_stop_reach_the_program() {
        let logs = tempfile::tempdir().unwrap();
        let (children, mut reports) = Children::new(logs.path().to_owned());
        let marks = logs.path().join("starts");
        let script = format!("echo start >> {}; exec sleep 1000", marks.display());
        children.start(ServiceSpec::new("x", "sh", &["-c", &script]));
        let starts = || fs::read_to_string(&marks).unwrap_or_default().lines().count();
        while starts() < 1 {
            tokio::task::yield_now().await;
        }

        assert!(children.restart("x"));
        while starts() < 2 {
            tokio::task::yield_now().await;
        }
        children.stop("x", Duration::from_secs(5)).await;

        assert_eq!(starts(), 2, "one order restarts once");
        assert!(!children.restart("x"));
        assert!(reports.try_recv().is_err(), "an orderly end is not reported");
    }
}
