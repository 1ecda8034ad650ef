//! Makes the read-only root usable: writable places in memory, device links, kernel modules.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;

use super::layout::Layout;
use crate::{
    kernel_modules::{ModuleError, ModuleTree},
    mounts::{self, MountError},
};

/// Needed before anything else can go on.
const FIRST_MODULES: [&str; 6] = ["overlay", "virtio_net", "vmw_vsock_virtio_transport", "virtio_rng", "tdx_guest", "erofs"];
/// What data disk and container engine would otherwise have loaded one by one.
const LATER_MODULES: [&str; 20] = [
    "dm_crypt",
    "ext4",
    "bridge",
    "br_netfilter",
    "veth",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "x_tables",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_nat",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "xt_tcpudp",
    "8021q",
];

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A directory or link.
    #[error("prepare {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
}

impl UserFacing for RootError {
    fn code(&self) -> &'static str {
        "guest/root"
    }

    fn fix(&self) -> String {
        "read the serial log; the image may be damaged or the VM may have too little memory".to_owned()
    }
}

/// Programs that are started once keys and disk are there, in the order they are needed.
const LATER_PROGRAMS: [&str; 7] = [
    "usr/lib/dstack/dstack-guest-agent",
    "usr/sbin/dockerd",
    "usr/libexec/docker/cli-plugins/docker-compose",
    "usr/bin/runc",
    "usr/sbin/xtables-nft-multi",
    "usr/bin/containerd-shim-runc-v2",
    "usr/bin/containerd",
];

/// Loads the modules and reads the programs that are needed later, so that starting them waits for neither the disk nor its hash tree.
/// For a thread of its own. A program that is not there is left out.
pub fn prepare_ahead(root: &Path) {
    load_later_modules();
    // Between two files nothing is copied: the kernel passes pages on, and the null device drops them.
    let Ok(mut null) = fs::File::options().write(true).open("/dev/null") else { return };
    for program in LATER_PROGRAMS {
        if let Ok(mut file) = fs::File::open(root.join(program)) {
            let _ = io::copy(&mut file, &mut null);
        }
    }
}

/// Prepares the root of the running machine.
///
/// Errors: a mount or directory that everything else needs.
pub fn prepare(layout: &Layout) -> Result<(), RootError> {
    let tree = ModuleTree::open(&modules_directory()?)?;
    report(tree.load(&FIRST_MODULES));
    mounts::mount_table(&mounts::ROOT)?;
    private_directory(&layout.run())?;
    mounts::overlay(Path::new("/etc"), &layout.run().join("etc"))?;
    for (path, mode) in [
        ("/var/lib", 0o755),
        ("/var/log", 0o755),
        ("/var/cache", 0o755),
        ("/var/tmp", 0o1777),
        ("/run/lock", 0o1777),
        ("/run/dstack", 0o755),
        ("/run/log", 0o755),
        ("/root", 0o700),
    ] {
        directory(Path::new(path), mode)?;
    }
    private_directory(&layout.logs())?;
    for (target, link) in [
        ("/run", "/var/run"),
        ("/run/lock", "/var/lock"),
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        if fs::symlink_metadata(link).is_err() {
            symlink(target, link).map_err(|source| RootError::Io { path: link.into(), source })?;
        }
    }
    if Path::new("/sys/kernel/config").is_dir() {
        // The quote interface of a hardware TD; elsewhere nothing needs it.
        let _ = mounts::mount_fs("configfs", Path::new("/sys/kernel/config"), "configfs", nix::mount::MsFlags::empty(), "");
    }
    let _ = nix::unistd::sethostname("dstack");
    Ok(())
}

fn load_later_modules() {
    match modules_directory().and_then(|directory| Ok(ModuleTree::open(&directory)?)) {
        Ok(tree) => report(tree.load(&LATER_MODULES)),
        Err(error) => crate::console::line(error),
    }
}

/// A module that is missing is only worth a line: it may be built in, and who needs it fails by itself.
fn report(problems: Vec<ModuleError>) {
    for problem in problems {
        match problem {
            // No such hardware: normal for everything that is tried on any machine.
            ModuleError::Load { source: nix::errno::Errno::ENODEV, .. } | ModuleError::Unknown { .. } => {}
            problem => crate::console::line(format_args!("{problem}")),
        }
    }
}

fn modules_directory() -> Result<PathBuf, RootError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|source| RootError::Io { path: "/proc/sys/kernel/osrelease".into(), source })?;
    Ok(Path::new("/usr/lib/modules").join(release.trim()))
}

fn directory(path: &Path, mode: u32) -> Result<(), RootError> {
    let failed = |source| RootError::Io { path: path.to_owned(), source };
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists || error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn private_directory(path: &Path) -> Result<(), RootError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(RootError::Io { path: path.to_owned(), source: error }),
        _ => Ok(()),
    }
}
