//! The control: a stock Debian 13 with systemd and docker, same kernel, firmware, machine and compose project.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use dstack_e2e::{hello, repository, try_get_quickly};

/// Longest boot worth waiting for.
const DEADLINE: Duration = Duration::from_secs(600);

/// Kernel, initrd and root of the control.
pub(crate) struct Stock {
    directory: PathBuf,
}

impl Stock {
    /// Builds it, or finds it built.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let cache =
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
        let directory = cache.context("HOME is not set")?.join("dstack/bench/stock");
        let example = hello();
        let status = Command::new(repository().join("benches/stock/build-image"))
            .arg(&directory)
            .args([example.join("docker-compose.yaml"), example.join("hello-images.oci.tar")])
            .status()
            .context("running build-image")?;
        ensure!(status.success(), "build-image failed");
        Ok(Self { directory })
    }

    /// Boots a fresh copy. Returns the time from QEMU's start to HTTP 200.
    pub(crate) fn boot(&self, firmware: &Path) -> anyhow::Result<Duration> {
        let work = tempfile::tempdir()?;
        let disk = work.path().join("root.qcow2");
        let root = self.directory.join("root.ext4");
        let created = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&root).arg(&disk).status()?;
        ensure!(created.success(), "qemu-img failed");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let start = Instant::now();
        let mut qemu = Running(
            Command::new("qemu-system-x86_64")
                .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35,hpet=off", "-smp", "2", "-m", "2048"])
                .args(["-nodefaults", "-nographic", "-append", "console=ttyS0 root=/dev/vda rw net.ifnames=0 quiet"])
                .arg("-bios")
                .arg(firmware)
                .arg("-kernel")
                .arg(self.directory.join("vmlinuz"))
                .arg("-initrd")
                .arg(self.directory.join("initrd.img"))
                .args(["-drive", &format!("file={},format=qcow2,if=none,id=root", disk.display()), "-device", "virtio-blk-pci,drive=root"])
                .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:8080"), "-device", "virtio-net-pci,netdev=net"])
                .args(["-serial", &format!("file:{}", work.path().join("serial").display())])
                .spawn()
                .context("starting QEMU")?,
        );
        let url = format!("http://127.0.0.1:{port}/health");
        while try_get_quickly(&url).is_err() {
            if let Some(status) = qemu.0.try_wait()? {
                bail!("the control's QEMU ended: {status}");
            }
            ensure!(start.elapsed() < DEADLINE, "the control did not answer in time");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(start.elapsed())
    }
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
