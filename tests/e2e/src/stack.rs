//! Starting, using and taking down a stack.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tempfile::TempDir;

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
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("release")
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

    /// The error's code, such as `vmm/unknown-image`, where the command failed with a code, a cause and a fix.
    ///
    /// # Panics
    /// When it did not.
    pub fn must_fail_with(&self, code: &str) -> String {
        assert_ne!(self.code, 0, "succeeded: {}", self.stdout);
        assert!(self.stderr.contains(&format!("[{code}]")), "expected [{code}] in: {}", self.stderr);
        assert!(self.stderr.contains("fix:"), "no fix in: {}", self.stderr);
        self.stderr.clone()
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

    /// Runs the command line against this stack.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn dstack(&self, arguments: &[&str]) -> Finished {
        let output = Command::new(binary_directory().join("dstack"))
            .args(arguments)
            .env("DSTACK_HOME", self.home())
            .env("DSTACK_BIN_DIR", binary_directory())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("running dstack: {error}"));
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Command lines of the processes that belong to this stack.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let home = self.home().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        let lines = pids.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&home)).collect()
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
    /// Where its web server answers.
    pub url: String,
    /// Where its guest agent answers.
    pub agent_url: String,
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
        let folder = hello();
        let env_file = self.home().join(format!("{name}.env"));
        fs::write(&env_file, format!("HELLO_SECRET={secret}\n")).unwrap_or_else(|error| panic!("writing the env file: {error}"));
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let (compose, archive) = (path(folder.join("docker-compose.yaml")), path(folder.join("hello-images.oci.tar")));
        let env = path(env_file.clone());
        let mut arguments = vec!["deploy", "-c", &compose, "-n", name, "-e", &env, "--image-archive", &archive, "-p", "auto:8080", "--yes"];
        arguments.extend(extra);
        let _deployed = self.dstack(&arguments).must_succeed();
        fs::remove_file(&env_file).unwrap_or_else(|error| panic!("removing the env file: {error}"));
        self.app(name)
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
