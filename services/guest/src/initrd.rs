//! First stage: from the initrd to the measured root.
//!
//! The command line and this program are measured; everything on the disk is checked block by block by dm-verity
//! against the root hash of the command line. Afterwards the root's own `dstack-init` takes over as PID 1.

use std::{
    convert::Infallible,
    ffi::CString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::MsFlags,
    unistd::{chdir, chroot, execve},
};

use crate::{
    block_device::{self, DeviceNotFound},
    boot_clock::{TIMELINE_VARIABLE, Timeline},
    cmdline::{self, CmdlineError, RootParameters},
    command::{CommandError, Invocation, Runner},
    kernel_modules::{self, ModuleError},
    mounts::{self, MountError},
};

/// Present only in the initrd.
pub const MARKER: &str = "/etc/initrd-release";
/// Modules to load, one absolute path per line.
pub const MODULE_LIST: &str = "/modules.load";
/// Where the program that takes over lies in the root.
pub const NEXT_INIT: &str = "/usr/lib/dstack/dstack-init";

const VERITYSETUP: &str = "/usr/sbin/veritysetup";
const SYSROOT: &str = "/sysroot";
const ROOT_MAPPING: &str = "dstack-root";
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);
const MOVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// Why the root could not be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// A mount failed. For the root itself that means its blocks are not those that were measured.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A module was refused.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The command line does not name the root.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The root's disk is missing.
    #[error(transparent)]
    Device(#[from] DeviceNotFound),
    /// dm-verity refused the disk.
    #[error("open the root with dm-verity")]
    Verity(#[source] CommandError),
    /// The root was opened but does not match its hash.
    #[error("the root image does not match the measured root hash")]
    RootTampered(#[source] io::Error),
    /// The root has no init, or it cannot be executed.
    #[error("enter the root: {operation}")]
    Enter {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The command line cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl dstack_api::UserFacing for InitrdError {
    fn code(&self) -> &'static str {
        match self {
            Self::Verity(_) | Self::RootTampered(_) => "guest/root-image-tampered",
            Self::Mount(MountError::Mount { target, .. }) if target == Path::new(SYSROOT) => "guest/root-image-tampered",
            Self::Cmdline(_) => "guest/command-line",
            Self::Device(_) => "guest/root-disk-missing",
            _ => "guest/initrd",
        }
    }

    fn fix(&self) -> String {
        match self.code() {
            "guest/root-image-tampered" => "fetch or build the OS image again and compare it with its sha256sum.txt".to_owned(),
            "guest/command-line" | "guest/root-disk-missing" => {
                "start the VM with the command line and disks of the image's metadata.json".to_owned()
            }
            _ => "read the serial log; the image may be damaged".to_owned(),
        }
    }
}

/// Whether this is the initrd.
#[must_use]
pub fn is_initrd() -> bool {
    Path::new(MARKER).exists()
}

/// Mounts what the kernel offers and loads the modules.
///
/// Errors: a mount or a module is refused.
pub fn prepare() -> Result<(), InitrdError> {
    mounts::mount_table(&mounts::INITRD)?;
    kernel_modules::load_list(Path::new(MODULE_LIST))?;
    Ok(())
}

/// Opens the measured root and becomes its `dstack-init`.
///
/// Errors: the root is missing, is not the measured one, or has no init. Does not return otherwise.
pub fn enter_root(runner: &dyn Runner, timeline: &Timeline) -> Result<Infallible, InitrdError> {
    let text = fs::read_to_string("/proc/cmdline").map_err(|source| InitrdError::Read { path: "/proc/cmdline", source })?;
    let parameters = cmdline::parse_root_parameters(&text)?;
    let device = block_device::wait_for_serial(Path::new("/"), block_device::ROOT_SERIAL, DEVICE_PATIENCE)?;
    let mapped = open_verity(runner, &device, &parameters)?;
    mounts::mount_fs(&mapped.display().to_string(), Path::new(SYSROOT), "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")?;
    let next = format!("{SYSROOT}{NEXT_INIT}");
    fs::File::open(&next).and_then(|mut file| io::copy(&mut file, &mut io::sink())).map_err(InitrdError::RootTampered)?;
    timeline.mark("root-verified");
    free_initrd(Path::new("/"));
    for point in MOVED {
        mounts::relocate(Path::new(point), Path::new(&format!("{SYSROOT}{point}")))?;
    }
    let enter = |operation| move |source| InitrdError::Enter { operation, source };
    chdir(SYSROOT).map_err(enter("change directory"))?;
    mounts::relocate(Path::new("."), Path::new("/"))?;
    chroot(".").map_err(enter("change root"))?;
    chdir("/").map_err(enter("change directory"))?;
    let program = CString::new(NEXT_INIT).map_err(|_| InitrdError::Enter { operation: "name init", source: Errno::EINVAL })?;
    let environment = [
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "HOME=/root".to_owned(),
        "TERM=dumb".to_owned(),
        format!("{TIMELINE_VARIABLE}={}", timeline.handover()),
    ];
    let environment: Vec<CString> = environment.into_iter().filter_map(|variable| CString::new(variable).ok()).collect();
    execve(&program, &[&program], &environment).map_err(enter("execute init"))
}

/// Maps `device` through dm-verity; every read of the mapping is checked from then on.
fn open_verity(runner: &dyn Runner, device: &Path, parameters: &RootParameters) -> Result<PathBuf, InitrdError> {
    let device = device.display().to_string();
    let offset = format!("--hash-offset={}", parameters.data_bytes);
    let root = parameters.verity_root.to_string();
    // There is no udev: libdevmapper has to make the node itself.
    let invocation = Invocation::new(VERITYSETUP, &["open", &offset, &device, ROOT_MAPPING, &device, &root]).env("DM_DISABLE_UDEV", "1");
    runner.run(&invocation).map_err(InitrdError::Verity)?;
    Ok(Path::new("/dev/mapper").join(ROOT_MAPPING))
}

/// Deletes the initrd's files, which are kept in memory, but nothing on other file systems.
fn free_initrd(root: &Path) {
    let Ok(device) = fs::symlink_metadata(root).map(|meta| meta.dev()) else { return };
    remove_tree(root, device);
}

fn remove_tree(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != device => {}
            Ok(meta) if meta.is_dir() => {
                remove_tree(&path, device);
                let _ = fs::remove_dir(&path);
            }
            Ok(_) => drop(fs::remove_file(&path)),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Invocation>>);

    impl Runner for Recorder {
        fn run(&self, invocation: &Invocation) -> Result<Vec<u8>, CommandError> {
            self.0.lock().unwrap().push(invocation.clone());
            Ok(Vec::new())
        }
    }

    #[test]
    fn verity_takes_hash_and_offset_from_the_command_line() {
        let recorder = Recorder::default();
        let parameters = RootParameters { verity_root: dstack_manifest::Digest32::new([0xab; 32]), data_bytes: 8192 };

        let mapped = open_verity(&recorder, Path::new("/dev/vda"), &parameters).unwrap();

        assert_eq!(mapped, Path::new("/dev/mapper/dstack-root"));
        let ran = format!("{:?}", recorder.0.lock().unwrap()[0]);
        assert_eq!(ran, format!("/usr/sbin/veritysetup open --hash-offset=8192 /dev/vda dstack-root /dev/vda {}", "ab".repeat(32)));
    }

    #[test]
    fn freeing_the_initrd_removes_files_and_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), "x").unwrap();

        free_initrd(root.path());

        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
