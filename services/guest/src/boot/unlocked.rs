//! Fourth and fifth phase: the data disk is open, the environment is known, the boot is measured to its end; then the
//! network is joined.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use dstack_attester::AttesterError;
use dstack_event_log::names;

use super::{
    disk::{DataDisk, DiskError, DiskKeys, DiskOutcome, DiskState},
    environment::{Environment, EnvironmentError},
    host_share::write_private,
    keys::KeysObtained,
    layout::Layout,
    measured::ConfigMeasured,
    network::NetworkUp,
};
use crate::{
    app_keys::AppKeysError,
    block_device::{self, DeviceNotFound},
    command::Runner,
    host_notify::Notifier,
    mounts::{self, MountError},
};

const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// Directories of the data disk and where they appear.
const BINDS: [(&str, &str, u32); 2] = [("docker", "var/lib/docker", 0o710), ("containerd", "var/lib/containerd", 0o711)];

/// Why the disk or what depends on the keys is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlockError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is no disk.
    #[error(transparent)]
    NoDisk(#[from] DeviceNotFound),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The TEE.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The keys' document.
    #[error(transparent)]
    AppKeys(#[from] AppKeysError),
    /// A file.
    #[error("store {}", path.display())]
    Store {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl UserFacing for UnlockError {
    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.code(),
            Self::NoDisk(_) => "guest/disk-missing",
            Self::Mount(_) | Self::Store { .. } | Self::AppKeys(_) => "guest/storage",
            Self::Attester(error) => error.code(),
            Self::Environment(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Disk(error) => error.fix(),
            Self::NoDisk(_) => "start the VM with its data disk attached".to_owned(),
            Self::Mount(_) | Self::Store { .. } | Self::AppKeys(_) => "give the VM more memory or a larger disk".to_owned(),
            Self::Attester(error) => error.fix(),
            Self::Environment(error) => error.fix(),
        }
    }
}

/// The disk is open and the application's secrets are in place.
#[derive(Debug)]
pub struct DiskUnlocked {
    /// What was measured.
    pub measured: ConfigMeasured,
    /// The application's variables.
    pub environment: Environment,
}

/// Disk and network are there: the application can be started.
#[derive(Debug)]
pub struct Networked {
    /// What was measured.
    pub measured: ConfigMeasured,
    /// The application's variables.
    pub environment: Environment,
}

impl KeysObtained {
    /// Opens the data disk and the sealed environment, and measures that the system is ready.
    ///
    /// Errors: each fails the boot; nothing is started without its disk or its variables.
    pub fn unlock_disk(self, runner: &dyn Runner, layout: &Layout, notifier: &Notifier) -> Result<DiskUnlocked, UnlockError> {
        let Self { measured, keys, older, document } = self;
        let app = measured.config.app.document();
        let provider = app.key_provider().to_string();
        let env_keys: Vec<_> = std::iter::once(&keys).chain(older.iter().map(|older| &older.keys)).collect();
        let env_keys: Vec<_> = env_keys.iter().filter_map(|keys| keys.env_crypt_key.as_ref()).collect();
        let environment = Environment::open(measured.config.encrypted_env.as_deref(), &env_keys, &app.allowed_envs, &provider)?;
        let device = block_device::wait_for_serial(layout.root(), block_device::DATA_SERIAL, DEVICE_PATIENCE)?;
        let older_disk_keys: Vec<_> = older.iter().map(|older| &older.keys.disk_crypt_key).collect();
        let keys = DiskKeys { current: &keys.disk_crypt_key, older: &older_disk_keys };
        open_disk(runner, layout, notifier, device, keys)?;
        measured.extend(names::STORAGE_FS, b"ext4")?;
        environment.store(layout)?;
        store(&layout.app_keys(), &document.to_json()?)?;
        let info = serde_json::to_vec(&measured.config.instance_info()).unwrap_or_default();
        let info_path = layout.shared_file(dstack_manifest::host_share::INSTANCE_INFO.name);
        let _ = fs::remove_file(&info_path);
        store(&info_path, &info)?;
        measured.extend(names::SYSTEM_READY, &[])?;
        Ok(DiskUnlocked { measured, environment })
    }
}

impl DiskUnlocked {
    /// Goes on once the network is up, of which `network` is the proof.
    #[must_use]
    pub fn join_network(self, _network: NetworkUp) -> Networked {
        Networked { measured: self.measured, environment: self.environment }
    }
}

fn store(path: &Path, bytes: &[u8]) -> Result<(), UnlockError> {
    write_private(path, bytes).map_err(|source| UnlockError::Store { path: path.to_owned(), source })
}

fn open_disk(runner: &dyn Runner, layout: &Layout, notifier: &Notifier, device: PathBuf, keys: DiskKeys<'_>) -> Result<(), UnlockError> {
    let disk = DataDisk { runner, device, scratch: layout.run(), mapper: "/dev/mapper".into() };
    let state = disk.state()?;
    notifier.progress(if state == DiskState::Ready { "mounting data disk" } else { "initializing data disk" });
    let data = layout.data_disk();
    if disk.unlock(state, keys, &data)? == DiskOutcome::Rekeyed {
        notifier.progress("data disk has the key of the current epoch");
    }
    notifier.progress("data disk ready");
    for (name, target, mode) in BINDS {
        let source = data.join(name);
        make_directory(&source, mode)?;
        mounts::bind(&source, &layout.root().join(target))?;
    }
    // The working directory moves to the disk; the secrets in it stay in memory.
    let work = data.join("dstack");
    make_directory(&work, 0o755)?;
    let shared = work.join(".host-shared");
    make_directory(&shared, 0o700)?;
    mounts::bind(&layout.host_shared(), &shared)?;
    mounts::bind(&work, &layout.work())?;
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<(), UnlockError> {
    use std::os::unix::fs::PermissionsExt as _;
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    made.map_err(|source| UnlockError::Store { path: path.to_owned(), source })
}
