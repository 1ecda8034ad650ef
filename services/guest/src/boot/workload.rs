//! Last phase: container engine, images, scripts and the application itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_api::UserFacing;
use dstack_manifest::{AppCompose, Runner as AppRunner};
use zeroize::Zeroizing;

use super::{
    agent_setup::{self, AgentSetupError},
    children::{Children, ServiceSpec},
    docker_engine::DockerEngine,
    environment::Environment,
    host_share::write_private,
    image_store::ImageStore,
    images::{self, CheckedImage, ImageError},
    layout::Layout,
    registry::{self, EngineConfig},
    unlocked::Networked,
    volumes::{self, VolumeError},
};
use crate::{
    boot_clock::Timeline,
    command::{CommandError, Invocation, Runner},
    host_notify::Notifier,
};

const ENGINE_PATIENCE: Duration = Duration::from_secs(120);
const AGENT_PATIENCE: Duration = Duration::from_secs(60);
const SCRIPT_PATIENCE: Duration = Duration::from_secs(3600);
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const COMPOSE_PROGRAMS: [&str; 3] =
    ["/usr/libexec/docker/cli-plugins/docker-compose", "/usr/lib/docker/cli-plugins/docker-compose", "/usr/bin/docker-compose"];
/// Runs a script in the shell that then becomes the application's launcher, so that what it exports is seen there.
const SOURCE_THEN_RUN: &str = r#"script=$1; shift; . "$script"; exec "$@""#;

/// Why the application does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// A file.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The engine did not start.
    #[error("the container engine does not answer: {log}")]
    Engine {
        /// End of its log.
        log: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The guest agent's socket.
    #[error(transparent)]
    AgentSetup(#[from] AgentSetupError),
    /// The guest agent did not start.
    #[error("the guest agent is not ready after {AGENT_PATIENCE:?}: {log}")]
    Agent {
        /// End of its log.
        log: String,
    },
    /// An init script failed.
    #[error("init script {number}")]
    InitScript {
        /// From 1.
        number: usize,
        /// The cause.
        #[source]
        source: CommandError,
    },
    /// The application did not start.
    #[error("start the application")]
    Compose(#[source] CommandError),
}

impl UserFacing for WorkloadError {
    fn code(&self) -> &'static str {
        match self {
            Self::Write { .. } => "guest/storage",
            Self::Volume(error) => error.code(),
            Self::Image(error) => error.code(),
            Self::Engine { .. } => "guest/container-engine",
            Self::AgentSetup(error) => error.code(),
            Self::Agent { .. } => "guest/agent",
            Self::InitScript { .. } => "guest/init-script",
            Self::Compose(_) => "guest/compose-up",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Write { .. } => "give the VM a larger disk".to_owned(),
            Self::Volume(error) => error.fix(),
            Self::Image(error) => error.fix(),
            Self::AgentSetup(error) => error.fix(),
            Self::Engine { .. } | Self::Agent { .. } => "give the VM more memory; otherwise report the log above".to_owned(),
            Self::InitScript { .. } => "correct the script in app-compose.json and deploy again".to_owned(),
            Self::Compose(_) => "correct the compose file or the pre-launch script; the cause is what docker compose said".to_owned(),
        }
    }
}

/// What every step needs.
pub struct Bench<'a> {
    /// Runs programs.
    pub runner: &'a dyn Runner,
    /// Where things are.
    pub layout: &'a Layout,
    /// Tells the host.
    pub notifier: &'a Notifier,
    /// Long-running programs.
    pub children: &'a Children,
    /// Marks.
    pub timeline: &'a Timeline,
}

/// The application runs.
#[derive(Debug)]
pub struct WorkloadStarted {
    compose: ComposeCommand,
}

/// How `docker compose` is called for this application.
#[derive(Debug, Clone)]
struct ComposeCommand {
    program: String,
    args: Vec<String>,
    environment: Arc<Environment>,
}

impl ComposeCommand {
    fn new(layout: &Layout, environment: Arc<Environment>) -> Self {
        let program = COMPOSE_PROGRAMS.into_iter().find(|program| Path::new(program).exists()).unwrap_or("docker-compose").to_owned();
        let args = [
            "--progress",
            "plain",
            "-f",
            &layout.compose_file().display().to_string(),
            "--project-directory",
            &layout.work().display().to_string(),
        ];
        Self { program, args: args.into_iter().map(str::to_owned).collect(), environment }
    }

    /// The command line for `verb`, with the application's variables, through `script` if there is one.
    fn invocation(&self, script: Option<&Path>, work: &Path, verb: &[&str]) -> Invocation {
        let words: Vec<&str> = self.args.iter().map(String::as_str).chain(verb.iter().copied()).collect();
        let mut invocation = match script {
            None => Invocation::new(&self.program, &words),
            Some(script) => {
                let script = script.display().to_string();
                let head = ["-c", SOURCE_THEN_RUN, "dstack", &script, &self.program];
                Invocation::new("bash", &[&head, words.as_slice()].concat())
            }
        };
        invocation.directory = Some(work.to_owned());
        for var in self.environment.vars() {
            invocation = invocation.env(&var.key, &var.value);
        }
        invocation.patience(SCRIPT_PATIENCE)
    }
}

impl Networked {
    /// Starts engine, agent and application. Blocks. `images`: of the app's volumes.
    ///
    /// Errors: the first step that fails.
    pub fn start_workload(self, bench: &Bench<'_>, images: &[CheckedImage]) -> Result<WorkloadStarted, WorkloadError> {
        let app = &self.measured.config.app;
        let config = bench.layout.agent_config().display().to_string();
        let agent = ServiceSpec::new("dstack-guest-agent", "/usr/lib/dstack/dstack-guest-agent", &["--config", &config]);
        bench.children.start(agent.with_socket(agent_setup::open_socket(bench.layout)?));
        run_init_scripts(bench, app)?;
        bench.notifier.progress("setting up docker");
        ImageStore::new(bench.layout.root().join(ENGINE_DATA)).enter(images).map_err(ImageError::from)?;
        bench.timeline.mark("images");
        start_engine(bench, app, &self.measured.config.sys_config.docker_registry)?;
        wait_for_agent(bench)?;
        bench.timeline.mark("agent");
        let started = launch_beside_engine(bench, app, self.environment)?;
        bench.timeline.mark("containers");
        Ok(started)
    }
}

/// Mounts the app's volumes and checks the container images on them. Needs neither keys nor the data disk.
///
/// Errors: a volume that is missing or not the measured one, or that holds other images than the app-compose says.
pub fn open_volumes(runner: &dyn Runner, layout: &Layout, app: &AppCompose) -> Result<Vec<CheckedImage>, WorkloadError> {
    let document = app.document();
    volumes::mount_all(runner, layout.root(), &document.verity_volumes)?;
    Ok(images::check_all(layout.root(), &document.verity_volumes, &document.preloaded_images)?)
}

fn run_init_scripts(bench: &Bench<'_>, app: &AppCompose) -> Result<(), WorkloadError> {
    for (index, script) in app.document().init_scripts().iter().enumerate() {
        bench.notifier.progress("init-script");
        let path = bench.layout.shared_file(&format!("init-script-{index}.sh"));
        write(&path, script.as_bytes())?;
        let mut invocation = Invocation::new("bash", &[&path.display().to_string()]).patience(SCRIPT_PATIENCE);
        invocation.directory = Some(bench.layout.work());
        bench.runner.run(&invocation).map_err(|source| WorkloadError::InitScript { number: index + 1, source })?;
    }
    Ok(())
}

fn start_engine(bench: &Bench<'_>, app: &AppCompose, registry: &str) -> Result<(), WorkloadError> {
    let document = app.document();
    let preloaded: Vec<&str> = document.preloaded_images.iter().map(|image| image.reference.as_str()).collect();
    let registry = match registry::usable_registry(registry, document.docker_compose_file.as_deref().unwrap_or_default(), &preloaded) {
        Ok(registry) => registry,
        Err(reason) => {
            bench.notifier.progress(&format!("the host's registry is not used: {reason}"));
            None
        }
    };
    let config = bench.layout.run().join("docker.json");
    write(&config, &serde_json::to_vec(&EngineConfig::new(registry)).unwrap_or_default())?;
    let config = config.display().to_string();
    let socket = format!("unix://{}", bench.layout.docker_socket().display());
    let arguments =
        ["--config-file", &config, "--containerd", CONTAINERD_SOCKET, "-H", &socket, "--exec-root", "/run/docker", "-p", "/run/docker.pid"];
    // Containers of an earlier boot must not run before this boot's checks and scripts: the application starts them.
    bench.children.start(ServiceSpec::new("dockerd", "/usr/sbin/dockerd", &arguments).at_first(&["--restart=false"]));
    Ok(())
}

/// Where the engine keeps everything; on the data disk.
const ENGINE_DATA: &str = "var/lib/docker";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Starts containerd. Its state is only about running containers, and after a boot there are none, so it lives in memory
/// and need not wait for the disk.
///
/// Errors: its configuration cannot be written.
pub fn start_containerd(layout: &Layout, children: &Children) -> Result<(), WorkloadError> {
    const CONFIG: &str = r#"version = 2
root = "/run/dstack-init/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
address = "/run/containerd/containerd.sock"
[debug]
level = "warn"
"#;
    let path = layout.run().join("containerd.toml");
    write(&path, CONFIG.as_bytes())?;
    children.start(ServiceSpec::new("containerd", "/usr/bin/containerd", &["--config", &path.display().to_string()]));
    Ok(())
}

/// Launches the application while the engine still starts: the engine listens long before it answers, and its clients wait for it.
fn launch_beside_engine(bench: &Bench<'_>, app: &AppCompose, environment: Environment) -> Result<WorkloadStarted, WorkloadError> {
    let engine = DockerEngine::new(bench.layout.docker_socket());
    let unready = |source| WorkloadError::Engine { log: bench.children.log_tail("dockerd"), source };
    engine.wait_until_listening(ENGINE_PATIENCE).map_err(unready)?;
    std::thread::scope(|scope| {
        let ready = scope.spawn(|| {
            let outcome = engine.wait_until_ready(ENGINE_PATIENCE);
            match &outcome {
                Ok(()) => bench.timeline.mark("docker"),
                // Who waits for the engine is told by the end of its connection.
                Err(_) => drop(bench.children.restart("dockerd")),
            }
            outcome
        });
        let launched = launch(bench, app, environment);
        match ready.join() {
            Ok(Err(source)) => Err(unready(source)),
            _ => launched,
        }
    })
}

fn wait_for_agent(bench: &Bench<'_>) -> Result<(), WorkloadError> {
    let deadline = Instant::now() + AGENT_PATIENCE;
    while !bench.layout.agent_ready().exists() {
        if Instant::now() >= deadline {
            return Err(WorkloadError::Agent { log: bench.children.log_tail("dstack-guest-agent") });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn launch(bench: &Bench<'_>, app: &AppCompose, environment: Environment) -> Result<WorkloadStarted, WorkloadError> {
    let document = app.document();
    debug_assert_eq!(document.runner, AppRunner::DockerCompose, "others were refused by the requirements check");
    write(&bench.layout.compose_file(), document.docker_compose_file.as_deref().unwrap_or_default().as_bytes())?;
    let compose = ComposeCommand::new(bench.layout, Arc::new(environment));
    let script = match &document.pre_launch_script {
        Some(script) if !script.is_empty() => {
            bench.notifier.progress("pre-launch");
            let path = bench.layout.shared_file("pre-launch.sh");
            write(&path, Zeroizing::new(script.clone()).as_bytes())?;
            Some(path)
        }
        _ => None,
    };
    bench.notifier.progress("starting containers");
    let up = compose.invocation(script.as_deref(), &bench.layout.work(), &["up", "--detach", "--remove-orphans"]);
    bench.runner.run(&up).map_err(WorkloadError::Compose)?;
    Ok(WorkloadStarted { compose })
}

impl WorkloadStarted {
    /// Stops the application's containers. They are kept, with their files.
    pub fn stop(&self, bench: &Bench<'_>) {
        let stop = self.compose.invocation(None, &bench.layout.work(), &["stop", "--timeout", "10"]).patience(STOP_PATIENCE);
        if let Err(error) = bench.runner.run(&stop) {
            crate::console::line(format_args!("stop the application: {error}"));
        }
    }
}

/// Replaces a file; a link in its place is not followed.
fn write(path: &Path, bytes: &[u8]) -> Result<(), WorkloadError> {
    let _ = fs::remove_file(path);
    write_private(path, bytes).map_err(|source| WorkloadError::Write { path: path.to_owned(), source })
}
