//! A VM's directory: what QEMU and the guest read and write, and the sockets between them and us.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::VmmError;

/// Paths inside a VM's directory.
#[derive(Debug, Clone)]
pub(crate) struct VmDir {
    root: PathBuf,
}

impl VmDir {
    /// `id` was made by us or found in the database, so it is a plain name.
    pub(crate) fn new(run_path: &Path, id: &str) -> Self {
        Self { root: run_path.join(id) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn data_disk(&self) -> PathBuf {
        self.root.join("hda.img")
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.root.join("shared.img")
    }

    pub(crate) fn serial_log(&self) -> PathBuf {
        self.root.join("serial.log")
    }

    pub(crate) fn stdout_log(&self) -> PathBuf {
        self.root.join("stdout.log")
    }

    pub(crate) fn stderr_log(&self) -> PathBuf {
        self.root.join("stderr.log")
    }

    pub(crate) fn vsock_log(&self) -> PathBuf {
        self.root.join("vsock.log")
    }

    pub(crate) fn qmp_socket(&self) -> PathBuf {
        self.root.join("qmp.sock")
    }

    /// Where the vsock daemon waits for QEMU.
    pub(crate) fn vhost_socket(&self) -> PathBuf {
        self.root.join("vhost.sock")
    }

    /// Where the vsock daemon takes connections into the guest.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.root.join("vsock.sock")
    }

    /// Where the vsock daemon delivers the guest's connections to `port` of the host.
    pub(crate) fn guest_socket(&self, port: u32) -> PathBuf {
        self.root.join(format!("vsock.sock_{port}"))
    }

    /// Makes the directory (0700) with an empty data disk.
    ///
    /// Errors: it exists, or the disk is full.
    pub(crate) fn create(&self, disk_size_gib: u32) -> Result<(), VmmError> {
        let failed = |path: PathBuf| VmmError::io("creating", path);
        if let Some(parent) = self.root.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed(parent.to_owned()))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&self.root).map_err(failed(self.root.clone()))?;
        let disk = File::options().create_new(true).write(true).mode(0o600).open(self.data_disk()).map_err(failed(self.data_disk()))?;
        disk.set_len(u64::from(disk_size_gib) << 30).map_err(failed(self.data_disk()))
    }

    /// Removes sockets of an earlier run.
    pub(crate) fn remove_stale_sockets(&self) {
        for socket in [self.qmp_socket(), self.vhost_socket(), self.vsock_socket()] {
            let _absent = fs::remove_file(socket);
        }
    }

    /// Removes the directory with everything in it; an absent one is fine.
    pub(crate) fn remove(&self) -> Result<(), VmmError> {
        match fs::remove_dir_all(&self.root) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(VmmError::Io { what: "removing", path: self.root.clone(), source })
            }
            _ => Ok(()),
        }
    }
}
