//! Mounting, with errors that say what was mounted where.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The mount point cannot be made.
    #[error("create {}", path.display())]
    CreateTarget {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("mount {what} on {}", target.display())]
    Mount {
        /// Device or file system.
        what: String,
        /// Mount point.
        target: PathBuf,
        /// The cause.
        #[source]
        source: Errno,
    },
}

/// One entry of a mount table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    what: &'static str,
    target: &'static str,
    fs: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// What the initrd needs.
pub const INITRD: [Entry; 4] = [
    Entry { what: "proc", target: "/proc", fs: "proc", flags: NO_EXEC, data: "" },
    Entry { what: "sysfs", target: "/sys", fs: "sysfs", flags: NO_EXEC, data: "" },
    Entry { what: "devtmpfs", target: "/dev", fs: "devtmpfs", flags: MsFlags::MS_NOSUID, data: "mode=0755" },
    Entry { what: "tmpfs", target: "/run", fs: "tmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), data: "mode=0755,size=20%" },
];

/// What the root needs besides. `/run`, `/proc`, `/sys` and `/dev` came along from the initrd.
pub const ROOT: [Entry; 8] = [
    Entry {
        what: "devpts",
        target: "/dev/pts",
        fs: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=0620,ptmxmode=0666",
    },
    Entry { what: "tmpfs", target: "/dev/shm", fs: "tmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), data: "mode=1777" },
    Entry { what: "mqueue", target: "/dev/mqueue", fs: "mqueue", flags: NO_EXEC, data: "" },
    Entry { what: "tmpfs", target: "/tmp", fs: "tmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), data: "mode=1777" },
    Entry { what: "tmpfs", target: "/var", fs: "tmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), data: "mode=0755" },
    Entry { what: "tmpfs", target: "/dstack", fs: "tmpfs", flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), data: "mode=0755" },
    Entry { what: "cgroup2", target: "/sys/fs/cgroup", fs: "cgroup2", flags: NO_EXEC, data: "nsdelegate" },
    Entry { what: "securityfs", target: "/sys/kernel/security", fs: "securityfs", flags: NO_EXEC, data: "" },
];

/// Mounts a table in order, making mount points where the file system below allows it.
///
/// Errors: the first entry that fails. `securityfs` and `mqueue` may be missing from a kernel; that is no error.
pub fn mount_table(entries: &[Entry]) -> Result<(), MountError> {
    for entry in entries {
        let optional = matches!(entry.fs, "securityfs" | "mqueue");
        let result = mount_fs(entry.what, Path::new(entry.target), entry.fs, entry.flags, entry.data);
        if !optional {
            result?;
        }
    }
    Ok(())
}

/// Mounts one file system; the mount point is made if it is missing.
///
/// Errors: no mount point, or the kernel refuses.
pub fn mount_fs(what: &str, target: &Path, fs_type: &str, flags: MsFlags, data: &str) -> Result<(), MountError> {
    ensure_directory(target)?;
    let data = (!data.is_empty()).then_some(data);
    match mount(Some(what), target, Some(fs_type), flags, data) {
        // Mounted by the kernel or an earlier stage.
        Err(Errno::EBUSY) if what == fs_type => Ok(()),
        result => result.map_err(|source| MountError::Mount { what: what.to_owned(), target: target.to_owned(), source }),
    }
}

/// Makes `source` visible at `target` as well.
///
/// Errors: as [`mount_fs`].
pub fn bind(source: &Path, target: &Path) -> Result<(), MountError> {
    ensure_directory(target)?;
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).map_err(|cause| MountError::Mount {
        what: source.display().to_string(),
        target: target.to_owned(),
        source: cause,
    })
}

/// Moves a mount point.
///
/// Errors: as [`mount_fs`].
pub fn relocate(source: &Path, target: &Path) -> Result<(), MountError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|cause| MountError::Mount {
        what: source.display().to_string(),
        target: target.to_owned(),
        source: cause,
    })
}

/// Lays a writable layer on tmpfs over a directory of the read-only root. `layers`: a directory on tmpfs for the layers.
///
/// Errors: as [`mount_fs`].
pub fn overlay(target: &Path, layers: &Path) -> Result<(), MountError> {
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    ensure_directory(&upper)?;
    ensure_directory(&work)?;
    let data = format!("lowerdir={},upperdir={},workdir={}", target.display(), upper.display(), work.display());
    mount_fs("overlay", target, "overlay", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &data)
}

/// Unmounts everything below `root` that is not part of the kernel's own trees, deepest first. Returns what stayed mounted.
pub fn unmount_all(mountinfo: &str) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| !["/proc", "/sys", "/dev", "/run"].iter().any(|kept| point == Path::new(kept)) && point != Path::new("/"))
        .collect();
    points.reverse();
    points
        .into_iter()
        .filter(|point| {
            let outcome = umount2(point, MntFlags::UMOUNT_NOFOLLOW).or_else(|_| umount2(point, MntFlags::MNT_DETACH));
            !matches!(outcome, Ok(()) | Err(Errno::EINVAL | Errno::ENOENT))
        })
        .collect()
}

fn ensure_directory(path: &Path) -> Result<(), MountError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| MountError::CreateTarget { path: path.to_owned(), source })
}
