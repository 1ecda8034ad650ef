//! Starting, using and taking down a stack.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::try_get_quickly;

/// One guest at a time: an emulated guest takes both cores.
static MACHINE: Mutex<()> = Mutex::new(());

/// Root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn binary_directory() -> PathBuf {
    if let Some(directory) = env::var_os("DSTACK_BIN_DIR") {
        return directory.into();
    }
    // Where the Makefile builds.
    let default = || dstack_service::directories::cache().unwrap_or_else(repository).join("target");
    env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from).join("release")
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr))
    }

    /// Itself, if the command succeeded.
    ///
    /// # Panics
    /// When it failed.
    #[must_use]
    pub fn must_succeed(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// What the command was refused for: it failed with this code, and said what happened and what to do.
    ///
    /// # Panics
    /// When it succeeded, failed with another code, or said less.
    #[must_use]
    pub fn must_fail_with(&self, code: &str) -> Refusal {
        assert!(matches!(self.code, 1..=3), "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        let error = self.stderr.find("dstack: error: ").and_then(|start| self.stderr.get(start..)).unwrap_or_default();
        let (head, fix) = error.split_once("\n  fix:   ").unwrap_or_else(|| panic!("no fix in: {}", self.stderr));
        assert!(head.contains(&format!("[{code}]")), "expected [{code}] in: {}", self.stderr);
        let cause = match head.split_once("\n  cause: ") {
            Some((_, cause)) => cause.to_owned(),
            None => head.trim_start_matches("dstack: error: ").replace(&format!(" [{code}]"), ""),
        };
        assert!(!cause.trim().is_empty() && !fix.trim().is_empty(), "{}", self.stderr);
        Refusal { cause, fix: fix.trim().to_owned() }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Refusal {
    /// What happened.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Refusal {
    /// Asserts that cause and fix name what matters.
    ///
    /// # Panics
    /// When one does not.
    pub fn must_say(&self, cause: &str, fix: &str) {
        assert!(self.cause.contains(cause), "{cause:?} is not in the cause {:?}", self.cause);
        assert!(self.fix.contains(fix), "{fix:?} is not in the fix {:?}", self.fix);
    }
}

/// Waits until `condition` gives something.
///
/// # Panics
/// After `patience`.
pub fn eventually<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A running local stack, taken down when dropped.
pub struct Stack {
    home: TempDir,
    _machine: MutexGuard<'static, ()>,
}

impl Stack {
    /// Starts one in a new home, on free ports.
    ///
    /// # Panics
    /// When a program or the OS image is missing, or the stack does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more arguments for `dstack up`.
    ///
    /// # Panics
    /// As [`Stack::start`].
    #[must_use]
    pub fn start_with(up: &[&str]) -> Self {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let dstack = binary_directory().join("dstack");
        assert!(dstack.exists(), "{} is missing: run `make image`", dstack.display());
        let home = tempfile::Builder::new().prefix("dstack-e2e-").tempdir().unwrap_or_else(|error| panic!("temporary folder: {error}"));
        let stack = Self { home, _machine: machine };
        let _up = stack.dstack(&[&["up"], up].concat()).must_succeed();
        stack
    }

    /// Its `DSTACK_HOME`.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command line against this stack, not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary_directory().join("dstack"));
        command.args(arguments).stdin(Stdio::null());
        command.env("DSTACK_HOME", self.home()).env("DSTACK_BIN_DIR", binary_directory()).env("NO_COLOR", "1");
        command
    }

    /// Runs the command line against this stack.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn dstack(&self, arguments: &[&str]) -> Finished {
        let output = self.command(arguments).output().unwrap_or_else(|error| panic!("running dstack: {error}"));
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Processes that belong to this stack, by id with their command lines.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let home = self.home().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
        let line = |id| Some((id, String::from_utf8_lossy(&fs::read(format!("/proc/{id}/cmdline")).ok()?).replace('\0', " ")));
        ids.filter_map(line).filter(|(_, line)| line.contains(&home)).collect()
    }

    /// The process of this stack that runs `program`, such as `dstack-vmm` or `qemu-system-x86_64`.
    #[must_use]
    pub fn process(&self, program: &str) -> Option<u32> {
        let runs_it = |line: &str| line.split(' ').next().is_some_and(|path| path.rsplit('/').next() == Some(program));
        self.processes().into_iter().find(|(_, line)| runs_it(line)).map(|(id, _)| id)
    }

    /// Kills a program of this stack, as a crash would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self, program: &str) {
        let id = self.process(program).unwrap_or_else(|| panic!("no {program} in {:#?}", self.processes()));
        let status = Command::new("kill").args(["-9", &id.to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -9 {id}");
        eventually("the end of a killed process", Duration::from_secs(10), || self.process(program).is_none().then_some(()));
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let down = self.dstack(&["down", "--purge", "--now"]);
        let left = self.processes();
        if std::thread::panicking() {
            let _stays_for_the_reader = (down.code, down.stderr);
        } else {
            assert_eq!(down.code, 0, "down: {}", down.stderr);
            assert!(left.is_empty(), "still running: {left:#?}");
        }
    }
}

/// Directory of the newest OS image of the default store.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn os_image() -> PathBuf {
    let output = Command::new(binary_directory().join("dstack")).args(["os", "list", "--json"]).output();
    let output = output.unwrap_or_else(|error| panic!("running dstack: {error}; run `make image`"));
    let images: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let newest = images.as_array().into_iter().flatten().find(|image| image["is_dev"] == true);
    newest.and_then(|image| image["path"].as_str()).map_or_else(|| panic!("no OS image: run `make image`"), PathBuf::from)
}

/// The example, its images made where they are missing.
///
/// # Panics
/// When they cannot be made.
#[must_use]
pub fn hello() -> PathBuf {
    let folder = repository().join("examples/hello");
    let status = Command::new(folder.join("build-images")).status().unwrap_or_else(|error| panic!("build-images: {error}"));
    assert!(status.success(), "build-images failed");
    folder
}

/// A deployed example.
#[derive(Debug, Clone)]
pub struct App {
    /// Its name.
    pub name: String,
    /// The VM's id.
    pub vm_id: String,
    /// The app's id.
    pub app_id: String,
    /// Where its web server answers: the first of [`Self::urls`].
    pub url: String,
    /// Where each of its published ports answers, in the order of the compose file.
    pub urls: Vec<String>,
    /// Where its guest agent answers.
    pub agent_url: String,
}

impl App {
    /// Waits until each published port answers: the command line waits for the first only.
    ///
    /// # Panics
    /// When one does not within a minute.
    pub fn wait_for_every_port(&self) {
        for url in &self.urls {
            eventually(url, Duration::from_secs(60), || try_get_quickly(url).ok());
        }
    }
}

impl Stack {
    /// Deploys `examples/hello` with a secret on a free port and waits for it.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn deploy_hello(&self, name: &str, secret: &str) -> App {
        self.deploy_hello_with(name, secret, &[])
    }

    /// The same, returning as soon as the VMM has accepted it.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn deploy_hello_without_waiting(&self, name: &str, secret: &str) -> App {
        self.deploy_hello_with(name, secret, &["--no-wait"])
    }

    fn deploy_hello_with(&self, name: &str, secret: &str, extra: &[&str]) -> App {
        let compose = hello().join("docker-compose.yaml");
        self.deploy(&compose, name, secret, &[&["-p", "auto:8080"], extra].concat())
    }

    /// Deploys a compose file that uses the example's images and secret.
    ///
    /// # Panics
    /// When it is refused or does not come up.
    #[must_use]
    pub fn deploy(&self, compose: &Path, name: &str, secret: &str, extra: &[&str]) -> App {
        let env_file = self.home().join(format!("{name}.env"));
        fs::write(&env_file, format!("HELLO_SECRET={secret}\n")).unwrap_or_else(|error| panic!("writing the env file: {error}"));
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let (compose, archive, env) = (path(compose), path(&hello().join("hello-images.oci.tar")), path(&env_file));
        let mut arguments = vec!["deploy", "-c", &compose, "-n", name, "-e", &env, "--image-archive", &archive, "--yes"];
        arguments.extend(extra);
        let _deployed = self.dstack(&arguments).must_succeed();
        fs::remove_file(&env_file).unwrap_or_else(|error| panic!("removing the env file: {error}"));
        let app = self.app(name);
        if !extra.contains(&"--no-wait") {
            app.wait_for_every_port();
        }
        app
    }

    /// What the VMM says of a deployed example.
    ///
    /// # Panics
    /// When there is none of that name, or it publishes no address.
    #[must_use]
    pub fn app(&self, name: &str) -> App {
        let info = self.dstack(&["info", name, "--json"]).must_succeed().json();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("missing in {info}")).to_owned();
        App {
            name: name.to_owned(),
            vm_id: text(&info["id"]),
            app_id: text(&info["app_id"]),
            url: text(&info["urls"][0]),
            urls: info["urls"].as_array().into_iter().flatten().map(text).collect(),
            agent_url: text(&info["evidence_url"]).split("/.well-known").next().unwrap_or_default().to_owned(),
        }
    }

    /// When the VMM accepted the last start of an app, Unix milliseconds.
    ///
    /// # Panics
    /// When there is no such app.
    #[must_use]
    pub fn accepted_at_ms(&self, name: &str) -> u64 {
        let info = self.dstack(&["info", name, "--json"]).must_succeed().json();
        info["started_at_ms"].as_u64().unwrap_or_else(|| panic!("no start in {info}"))
    }

    /// Files under this stack's home whose bytes contain `needle`.
    #[must_use]
    pub fn files_containing(&self, needle: &str) -> Vec<PathBuf> {
        let output = Command::new("grep").args(["-rlaF", needle]).arg(self.home()).output();
        let stdout = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&stdout).lines().map(PathBuf::from).collect()
    }
}
