//! `dstack up`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use dstack_api::{
    supervisor::{ProcessConfig, ProcessStatus},
    vmm::VmmClient,
};
use dstack_authorization::AllowListFile;
use dstack_rpc::{Client, Endpoint};
use dstack_service::fs::write_atomic;
use nix::fcntl::{Flock, FlockArg};
use rand_core::{OsRng, RngCore as _};
use serde::Serialize;
use tokio::time::Instant;

use super::{LocalStack, configs, health, programs, settings, settings::Settings, supervisor::Supervisor};
use crate::{
    args::UpArgs,
    failure::{Failure, Outcome},
    home::Home,
    kms::Kms,
    output::{Output, Tone, fields, printable},
    progress::Progress,
};

/// Names of the services under the supervisor.
pub(super) const TEE: &str = "tee-simulator";
/// See [`TEE`].
pub(super) const KMS: &str = "kms";
/// See [`TEE`].
pub(super) const VMM: &str = "vmm";

/// Longest path of a home: 107 bytes of a socket's path less `/vmm/vm/<uuid>/vsock.sock_10000`.
const MAX_HOME_BYTES: usize = 107 - 61;
/// How long `up` waits to tell which accelerator guests will have.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The programs of a stack.
struct Programs {
    supervisor: PathBuf,
    tee: PathBuf,
    kms: PathBuf,
    vmm: PathBuf,
    qemu: PathBuf,
    vhost_device_vsock: PathBuf,
}

impl Programs {
    fn find() -> Outcome<Self> {
        Ok(Self {
            supervisor: programs::find("dstack-supervisor")?,
            tee: programs::find("dstack-tee-simulator")?,
            kms: programs::find("dstack-kms")?,
            vmm: programs::find("dstack-vmm")?,
            qemu: programs::find("qemu-system-x86_64")?,
            vhost_device_vsock: programs::find("vhost-device-vsock")?,
        })
    }
}

/// What `up` reports.
#[derive(Debug, Serialize)]
struct Started {
    home: PathBuf,
    vmm_url: String,
    vmm_token_file: PathBuf,
    kms_url: String,
    collateral_url: String,
    images: PathBuf,
    accelerator: String,
    accelerator_reason: String,
}

/// Starts what does not run yet.
///
/// Errors: a program is missing, a port is taken, a service does not come up.
pub(crate) async fn up(home: &Home, args: &UpArgs, output: Output) -> Outcome {
    let programs = Programs::find()?;
    refuse_long_home(home)?;
    make_directories(home)?;
    let _lock = lock(home)?;
    let settings = prepare(home, args)?;
    let progress = Progress::new(output);
    let deadline = Duration::from_secs(args.timeout);
    let supervisor = start_supervisor(home, &programs.supervisor, &progress, deadline).await?;
    let stack = Stack { home, settings: &settings, supervisor: &supervisor, progress: &progress, deadline };
    stack.start_tee(&programs).await?;
    stack.start_kms(&programs).await?;
    configs::write(&home.verify_file(), &configs::verify(home, &settings))?;
    let (accelerator, accelerator_reason) = stack.start_vmm(&programs).await?;
    let local = LocalStack::must_find(home)?;
    let started = Started {
        home: home.root().to_owned(),
        vmm_url: local.vmm_url(),
        vmm_token_file: configs::token_file(home),
        kms_url: local.kms_url(),
        collateral_url: format!("http://127.0.0.1:{}", settings.collateral_port),
        images: settings.images.clone(),
        accelerator,
        accelerator_reason,
    };
    output.result(&started, |palette| {
        let accelerator = format!("{} ({})", started.accelerator, started.accelerator_reason);
        let rows = [
            ("VMM", format!("{} (token in {})", started.vmm_url, started.vmm_token_file.display())),
            ("KMS", started.kms_url.clone()),
            ("TEE", format!("simulated; nothing is protected from this machine ({})", started.collateral_url)),
            ("QEMU", accelerator),
            ("home", started.home.display().to_string()),
        ];
        let head = palette.paint(Tone::Good, "The local stack is up.");
        format!("{head}\n{}\n\nNext: dstack deploy -c docker-compose.yaml -n NAME", fields(palette, &rows))
    })
}

/// Sockets of VMs lie below the home, and the kernel limits their paths.
fn refuse_long_home(home: &Home) -> Outcome {
    let length = home.root().as_os_str().len();
    if length <= MAX_HOME_BYTES {
        return Ok(());
    }
    let cause = format!("{} has {length} characters, sockets of VMs leave room for {MAX_HOME_BYTES}", home.root().display());
    Err(Failure::usage("stack/home-too-long", cause, "set DSTACK_HOME to a shorter path"))
}

fn make_directories(home: &Home) -> Outcome {
    let folders = ["vmm", "vmm/vm", "kms", "tee", "tee/state", "supervisor", "logs", "images", "volumes", "config"];
    for folder in std::iter::once(home.root().to_owned()).chain(folders.map(|name| home.root().join(name))) {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| Failure::io("creating", &folder, &error))?;
    }
    Ok(())
}

/// Keeps two `up` or `down` from mixing.
///
/// Errors: another one is at work.
pub(super) fn lock(home: &Home) -> Outcome<Flock<File>> {
    let path = home.root().join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::io("opening", &path, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let cause = format!("another dstack command is starting or stopping the stack in {}", home.root().display());
        Failure::new("stack/busy", cause, "wait until it has ended")
    })
}

fn prepare(home: &Home, args: &UpArgs) -> Outcome<Settings> {
    let mut settings = match Settings::load(home)? {
        Some(settings) => settings,
        None => Settings::choose(home)?,
    };
    if let Some(images) = &args.images {
        settings.images = std::path::absolute(images).map_err(|error| Failure::io("reading", images, &error))?;
    }
    if let Some(registry) = &args.registry {
        settings.registry.clone_from(registry);
    }
    settings.save(home)?;
    let token = configs::token_file(home);
    if !token.exists() {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        write_atomic(&token, format!("{}\n", hex::encode(bytes)).as_bytes(), 0o600)
            .map_err(|error| Failure::io("writing", &token, &error))?;
    }
    AllowListFile::new(configs::allow_list(home)).plan_create(true).save()?;
    Ok(settings)
}

async fn start_supervisor(home: &Home, program: &Path, progress: &Progress, deadline: Duration) -> Outcome<Supervisor> {
    let step = progress.step("supervisor");
    let supervisor = Supervisor::at(&home.supervisor_socket())?;
    let config = home.root().join("config/supervisor.toml");
    configs::write(&config, &configs::supervisor(home))?;
    if supervisor.is_up().await {
        step.done("runs already");
        return Ok(supervisor);
    }
    let log = home.logs().join("supervisor.log");
    let mut child = spawn_detached(program, &config, &log)?;
    let end = Instant::now() + deadline;
    while !supervisor.is_up().await {
        if let Ok(Some(status)) = child.try_wait() {
            let cause = format!("the supervisor ended with {status}{}", health::tail(&log));
            return Err(Failure::new("stack/service-ended", cause, format!("read {}", log.display())));
        }
        if Instant::now() >= end {
            let _ended_already = child.kill();
            return Err(Failure::new("stack/service-slow", "the supervisor did not answer", format!("read {}", log.display())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    step.done(&format!("pid {}", child.id()));
    Ok(supervisor)
}

fn spawn_detached(program: &Path, config: &Path, log: &Path) -> Outcome<std::process::Child> {
    let open = |path: &Path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let file = open(log).map_err(|error| Failure::io("opening", log, &error))?;
    let also = file.try_clone().map_err(|error| Failure::io("opening", log, &error))?;
    Command::new(program)
        .arg("--config")
        .arg(config)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(also)
        .stderr(file)
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::io("starting", program, &error))
}

/// A stack that is being started.
struct Stack<'a> {
    home: &'a Home,
    settings: &'a Settings,
    supervisor: &'a Supervisor,
    progress: &'a Progress,
    deadline: Duration,
}

impl Stack<'_> {
    async fn start_tee(&self, programs: &Programs) -> Outcome {
        let url = format!("http://127.0.0.1:{}", self.settings.collateral_port);
        let client = Client::new(Endpoint::parse(&url)?).with_timeout(Duration::from_secs(2));
        let config = configs::tee_simulator(self.home, self.settings);
        let probe = || async { client.get("/sgx/certification/v4/rootcacrl").await.is_ok_and(|answer| answer.status.is_success()) };
        self.start(TEE, &programs.tee, &config, self.settings.collateral_port, probe).await
    }

    async fn start_kms(&self, programs: &Programs) -> Outcome {
        let url = format!("https://127.0.0.1:{}/prpc", self.settings.kms_port);
        let ca = configs::kms_ca(self.home);
        let probe = || async {
            match Kms::connect(&url, &ca) {
                Ok(kms) => kms.meta().await.is_ok(),
                Err(_) => false,
            }
        };
        self.start(KMS, &programs.kms, &configs::kms(self.home, self.settings), self.settings.kms_port, probe).await
    }

    /// Returns the accelerator and why.
    async fn start_vmm(&self, programs: &Programs) -> Outcome<(String, String)> {
        let tools = configs::VmmTools { qemu: &programs.qemu, vhost_device_vsock: &programs.vhost_device_vsock };
        let local = LocalStack::must_find(self.home)?;
        let vmm = VmmClient(local.vmm()?);
        let probe = || async { vmm.version(&Default::default()).await.is_ok() };
        self.start(VMM, &programs.vmm, &configs::vmm(self.home, self.settings, &tools), self.settings.vmm_port, probe).await?;
        // The VMM tries KVM with a real guest, which takes a moment.
        let end = Instant::now() + PROBE_DEADLINE;
        loop {
            let meta = vmm.get_meta(&Default::default()).await.map_err(Failure::rpc)?;
            if !meta.accelerator.is_empty() || Instant::now() >= end {
                return Ok((meta.accelerator, printable(&meta.accelerator_reason, 80)));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Leaves a service alone that runs the same program with the same configuration, else starts it anew.
    async fn start<F, R>(&self, id: &str, program: &Path, config: &str, port: u16, probe: F) -> Outcome
    where
        F: FnMut() -> R,
        R: Future<Output = bool>,
    {
        let step = self.progress.step(id);
        let config_file = self.home.root().join(format!("config/{id}.toml"));
        let is_changed = configs::write(&config_file, config)?;
        let log = self.home.logs().join(format!("{id}.log"));
        let wanted = process(id, program, &config_file, &log);
        let running = self.supervisor.info(id).await?;
        let is_current = running.as_ref().is_some_and(|info| {
            let is_older = modified(program).is_some_and(|built| info.state.started_at.is_some_and(|started| built > started));
            info.state.status == ProcessStatus::Running && info.config == wanted && !is_changed && !is_older
        });
        if !is_current {
            self.supervisor.remove(id).await?;
            if !settings::is_free(port) {
                let cause = format!("port {port} of 127.0.0.1, which {id} had before, is taken by another program");
                let fix = format!("stop that program, or delete {} to choose new ports", self.home.stack_file().display());
                return Err(Failure::new("stack/port-in-use", cause, fix));
            }
            let _no_log_yet = fs::remove_file(&log);
            self.supervisor.deploy(&wanted).await?;
        }
        health::wait_ready(self.supervisor, id, &log, self.deadline, probe)
            .await
            .map_err(|failure| failure.during(format!("starting {id}")))?;
        step.done(if is_current { "runs already" } else { "ready" });
        Ok(())
    }
}

fn process(id: &str, program: &Path, config: &Path, log: &Path) -> ProcessConfig {
    let text = |path: &Path| path.display().to_string();
    let inherited = ["PATH", "HOME", "DSTACK_LOG", "RUST_LOG", "LANG", "TMPDIR"];
    let env = inherited.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    ProcessConfig {
        id: id.to_owned(),
        name: id.to_owned(),
        command: text(program),
        args: vec!["--config".to_owned(), text(config)],
        env,
        stdout: text(log),
        stderr: text(log),
        note: "{\"kind\":\"service\"}".to_owned(),
        ..ProcessConfig::default()
    }
}

/// Unix seconds of a file's last change.
fn modified(path: &Path) -> Option<u64> {
    fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok().map(|age| age.as_secs())
}
