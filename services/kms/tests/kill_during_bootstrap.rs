//! The real program, killed at many points of its first start: the next start finds the old state or the new one.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const FILES: [&str; 9] =
    ["bootstrap-info.json", "root-ca.crt", "root-ca.key", "root-k256.key", "rpc-domain", "rpc.crt", "rpc.key", "tmp-ca.crt", "tmp-ca.key"];
/// Few, since each takes two starts of the program; the many are in `src/bootstrap/kills.rs`.
const KILLS: u32 = 16;

struct Kms {
    _directory: tempfile::TempDir,
    dir: PathBuf,
}

impl Kms {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().to_owned();
        fs::write(dir.join("allow.toml"), "version = 1\n").unwrap();
        let config = format!(
            "listen = \"127.0.0.1:0\"\ncert_dir = \"{d}/kms\"\nallow_list = \"{d}/allow.toml\"\ncollateral_url = \"http://127.0.0.1:1\"\n\
             ready_file = \"{d}/ready\"\n[danger]\nrun_without_tee = true\n",
            d = dir.display()
        );
        fs::write(dir.join("kms.toml"), config).unwrap();
        Self { _directory: directory, dir }
    }

    fn spawn(&self) -> Running {
        let _ = fs::remove_file(self.dir.join("ready"));
        let child = Command::new(env!("CARGO_BIN_EXE_dstack-kms"))
            .arg("--config")
            .arg(self.dir.join("kms.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Running(child)
    }

    fn must_become_ready(&self) -> Duration {
        let started = Instant::now();
        let mut running = self.spawn();
        while !self.dir.join("ready").exists() {
            assert!(running.0.try_wait().unwrap().is_none(), "the service ended by itself");
            assert!(started.elapsed() < Duration::from_secs(60), "the service does not become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        started.elapsed()
    }

    fn cert_dir(&self) -> PathBuf {
        self.dir.join("kms")
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn must_read(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn killed_at_any_point_the_keys_are_all_there_or_not_at_all() {
    // The shortest of three: what a busy machine adds would only spread the points behind the bootstrap.
    let whole_start = (0..3).map(|_| Kms::new().must_become_ready()).min().unwrap();
    let (mut before, mut after) = (0, 0);

    for kill in 0..KILLS {
        let kms = Kms::new();
        let running = kms.spawn();
        // Points spread over two whole starts, since the machine may be slower now.
        std::thread::sleep(whole_start * 2 * kill / KILLS);
        drop(running);

        let survived = kms.cert_dir().exists().then(|| {
            for name in FILES {
                must_read(&kms.cert_dir(), name);
            }
            (must_read(&kms.cert_dir(), "root-ca.key"), must_read(&kms.cert_dir(), "root-k256.key"))
        });
        kms.must_become_ready();

        for name in FILES {
            assert!(!must_read(&kms.cert_dir(), name).is_empty(), "{name} is empty");
        }
        let names: Vec<_> = fs::read_dir(&kms.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_string_lossy().contains("staging")), "{names:?}");
        match survived {
            None => before += 1,
            Some(keys) => {
                after += 1;
                assert_eq!(keys, (must_read(&kms.cert_dir(), "root-ca.key"), must_read(&kms.cert_dir(), "root-k256.key")));
            }
        }
    }

    assert!(before > 0 && after > 0, "the points do not straddle the bootstrap: {before} before, {after} after");
}
