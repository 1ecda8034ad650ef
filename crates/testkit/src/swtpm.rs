//! A TPM 2.0 in software (`swtpm`) behind a Unix socket, with the power button of its machine.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// `TPM2_PCR_Extend` with no password, up to the PCR's number: tag, size, command.
const EXTEND: [u8; 10] = [0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82];
/// Authorization area, one digest, SHA-256.
const EXTEND_WITH: [u8; 19] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0b];

/// A TPM of its own kind: no two have the same storage root.
pub struct Swtpm {
    directory: TempDir,
    process: Child,
}

impl Swtpm {
    /// Makes a new TPM and switches its machine on.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = must_switch_on(&directory);
        Self { directory, process }
    }

    /// Switches the machine off and on: the same TPM, and its registers begin anew.
    pub fn reboot(&mut self) {
        self.switch_off();
        self.process = must_switch_on(&self.directory);
    }

    /// Where it answers, one connection at a time.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.directory)
    }

    /// Measures something into a register.
    pub fn extend(&self, pcr: u8, digest: &[u8; 32]) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&[EXTEND.as_slice(), &[0, 0, 0, pcr], &EXTEND_WITH, digest].concat()).unwrap();
        let mut response = [0; 10];
        stream.read_exact(&mut response).unwrap();
        assert_eq!(response[6..], [0; 4], "the TPM refuses to extend PCR {pcr}");
    }

    fn switch_off(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.switch_off();
    }
}

fn socket_in(directory: &TempDir) -> PathBuf {
    directory.path().join("tpm.sock")
}

fn must_switch_on(directory: &TempDir) -> Child {
    let (path, socket) = (directory.path().display(), socket_in(directory));
    let mut process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .args(["--tpmstate", &format!("dir={path}"), "--server", &format!("type=unixio,path={}", socket.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("swtpm, which scripts/install-deps installs: {error}"));
    let started = Instant::now();
    // It listens a moment after the socket is there.
    while UnixStream::connect(&socket).is_err() {
        assert!(process.try_wait().unwrap().is_none(), "swtpm ended by itself");
        assert!(started.elapsed() < PATIENCE, "swtpm does not listen");
        std::thread::sleep(Duration::from_millis(1));
    }
    process
}
