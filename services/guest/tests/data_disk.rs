//! The data disk on a real loop device with the real cryptsetup and ext4 tools. Needs root.
//!
//! Where the kernel has no device mapper, cryptsetup checks header and key for real and a loop device at the data offset
//! stands for the mapping; the encryption itself is then covered by the boot test in a VM only.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic on purpose and say why they skip")]

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use dstack_api::UserFacing as _;
use dstack_guest::{
    boot::disk::{DataDisk, DiskError, DiskKeys, DiskOutcome, DiskState, MAPPING},
    command::{CommandError, Invocation, Runner, SystemRunner},
};
use dstack_key_hierarchy::Secret;
use sha2::{Digest as _, Sha256};

const MIB: u64 = 1 << 20;

/// A loop device over a sparse file, with a mount point; everything is taken down at the end.
struct Bench {
    directory: tempfile::TempDir,
    device: PathBuf,
}

impl Bench {
    fn new(size: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root for loop devices");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::File::create(directory.path().join("disk.img")).unwrap().set_len(size).unwrap();
        fs::create_dir(directory.path().join("mnt")).unwrap();
        fs::create_dir(directory.path().join("mapper")).unwrap();
        let device = must_attach(&directory.path().join("disk.img"), 0);
        Some(Self { directory, device })
    }

    fn disk<'a>(&self, runner: &'a dyn Runner) -> DataDisk<'a> {
        let scratch = self.directory.path().to_owned();
        DataDisk { runner, device: self.device.clone(), mapper: scratch.join("mapper"), scratch }
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn runner(&self) -> LoopMapper {
        LoopMapper { link: self.directory.path().join("mapper").join(MAPPING), crash_at: "nowhere" }
    }

    fn unlock_with(&self, runner: &LoopMapper, key: u8) -> Result<DiskOutcome, DiskError> {
        let disk = self.disk(runner);
        disk.unlock(disk.state()?, DiskKeys::only(&Secret::new([key; 32])), &self.target())
    }

    /// With the key of a later epoch, and that of the one before.
    fn unlock_in_epoch(&self, runner: &LoopMapper, current: u8, older: u8) -> Result<DiskOutcome, DiskError> {
        let (current, older) = (Secret::new([current; 32]), Secret::new([older; 32]));
        let disk = self.disk(runner);
        disk.unlock(disk.state()?, DiskKeys { current: &current, older: &[&Secret::new([99; 32]), &older] }, &self.target())
    }

    fn read_at(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut file = fs::File::open(&self.device).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn unlock(&self, key: u8) -> Result<DiskOutcome, DiskError> {
        self.unlock_with(&self.runner(), key)
    }

    fn state(&self) -> DiskState {
        self.disk(&SystemRunner).state().unwrap()
    }

    fn lock(&self) {
        let _ = Command::new("umount").arg(self.target()).output();
        let link = self.directory.path().join("mapper").join(MAPPING);
        if let Ok(device) = fs::read_link(&link) {
            let _ = Command::new("losetup").arg("--detach").arg(device).output();
            fs::remove_file(link).unwrap();
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) {
        let mut file = fs::OpenOptions::new().write(true).open(&self.device).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.lock();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}

fn must_attach(file: &Path, offset: u64) -> PathBuf {
    let output = Command::new("losetup").args(["--find", "--show", "--offset", &offset.to_string()]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Runs everything for real but the mapping: that is a loop device, made after cryptsetup accepted header and key.
/// Fails at one program, as if the machine had lost power there.
struct LoopMapper {
    link: PathBuf,
    crash_at: &'static str,
}

impl Runner for LoopMapper {
    fn run(&self, invocation: &Invocation) -> Result<Vec<u8>, CommandError> {
        if format!("{invocation:?}").contains(self.crash_at) {
            return Err(CommandError::TimedOut { program: invocation.program.clone(), patience: invocation.patience });
        }
        if invocation.args.first().is_none_or(|verb| verb != "open") || invocation.args.contains(&"--test-passphrase".to_owned()) {
            return SystemRunner.run(invocation);
        }
        let mut check = invocation.clone();
        check.args.pop();
        check.args.push("--test-passphrase".to_owned());
        SystemRunner.run(&check)?;
        let device = must_attach(Path::new(&check.args[check.args.len() - 2]), 16 * MIB);
        std::os::unix::fs::symlink(device, &self.link).unwrap();
        Ok(Vec::new())
    }
}

#[test]
fn a_blank_disk_is_formatted_and_keeps_its_data() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    assert_eq!(bench.state(), DiskState::Blank);

    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Formatted);
    fs::write(bench.target().join("file"), "content").unwrap();
    bench.lock();

    assert_eq!(bench.state(), DiskState::Ready);
    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Opened);
    assert_eq!(fs::read_to_string(bench.target().join("file")).unwrap(), "content");
}

#[test]
fn another_key_does_not_open_it_and_changes_nothing() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    bench.lock();

    let error = bench.unlock(2).unwrap_err();

    assert!(matches!(error, DiskError::WrongKey(_)), "{error}");
    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Opened);
}

#[test]
fn a_disk_of_an_earlier_epoch_gets_the_current_key_and_keeps_its_data() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    fs::write(bench.target().join("file"), "content").unwrap();
    bench.lock();

    assert_eq!(bench.unlock_in_epoch(&bench.runner(), 2, 1).unwrap(), DiskOutcome::Rekeyed);
    assert_eq!(fs::read_to_string(bench.target().join("file")).unwrap(), "content");
    bench.lock();

    assert!(matches!(bench.unlock(1), Err(DiskError::WrongKey(_))), "the old key is no use any more");
    assert_eq!(bench.unlock(2).unwrap(), DiskOutcome::Opened);
    assert_eq!(fs::read_to_string(bench.target().join("file")).unwrap(), "content");
}

#[test]
fn a_change_of_the_key_that_breaks_off_leaves_the_old_or_the_new_one() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    bench.lock();
    let old = bench.read_at(0, 1 << 20);
    assert!(bench.unlock_in_epoch(&LoopMapper { crash_at: "luksChangeKey", ..bench.runner() }, 2, 1).is_err());
    assert!(old == bench.read_at(0, 1 << 20), "the disk was changed");
    bench.unlock_in_epoch(&bench.runner(), 2, 1).unwrap();
    bench.lock();
    let new = bench.read_at(0, 1 << 20);
    let mark = [b"dstack data disk: new header v1\n".as_slice(), &Sha256::digest(&new)].concat();

    for written in [0, 512, 4096, 100_000] {
        bench.write_at(0, &[&new[..written], &old[written..]].concat());
        bench.write_at(8 << 20, &mark);

        assert_eq!(bench.unlock_in_epoch(&bench.runner(), 2, 1).unwrap(), DiskOutcome::Opened, "{written} bytes were written");
        bench.lock();
        assert!(new == bench.read_at(0, 1 << 20));
        assert_eq!(bench.read_at(8 << 20, 32), [0; 32]);
    }
    bench.write_at(0, &old);
    bench.write_at(8 << 20, &[&mark[..32], &[1; 32]].concat());
    assert_eq!(bench.unlock_in_epoch(&bench.runner(), 2, 1).unwrap(), DiskOutcome::Rekeyed, "a header that is not whole does not count");
}

#[test]
fn an_interrupted_formatting_is_done_again() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    for crash in ["luksFormat", "open", "mkfs.ext4"] {
        assert!(bench.unlock_with(&LoopMapper { crash_at: crash, ..bench.runner() }, 1).is_err());
        bench.lock();
        assert_eq!(bench.state(), DiskState::Formatting, "{crash}");
    }

    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Formatted);
    bench.lock();
    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Opened);
}

#[test]
fn a_foreign_disk_is_refused_and_left_alone() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&bench.device).status().unwrap().success());
    let before = fs::read(bench.directory.path().join("disk.img")).unwrap();

    let error = bench.unlock(1).unwrap_err();

    assert_eq!(error.code(), "guest/disk-foreign");
    assert!(before == fs::read(bench.directory.path().join("disk.img")).unwrap(), "the disk was changed");
}

#[test]
fn a_header_with_a_null_cipher_is_refused() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    bench.lock();
    let header = fs::read(&bench.device).unwrap();
    let cipher = br#""encryption":"aes-xts-plain64","sector_size""#;
    let at = header.windows(cipher.len()).position(|window| window == cipher).unwrap();
    bench.write_at(u64::try_from(at).unwrap(), br#""encryption":"cipher_null-ecb""#);

    let error = bench.unlock(1).unwrap_err();

    assert_eq!(error.code(), "guest/disk-header-refused", "{error}");
}

#[test]
fn a_tampered_second_header_is_not_used() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    bench.lock();
    bench.write_at(16 << 10, &[0xff; 16 << 10]);

    assert_eq!(bench.unlock(1).unwrap(), DiskOutcome::Opened);
}

#[test]
fn an_enlarged_disk_gets_a_larger_file_system() {
    let Some(bench) = Bench::new(96 * MIB) else { return };
    bench.unlock(1).unwrap();
    let before = total_bytes(&bench.target());
    bench.lock();
    let image = bench.directory.path().join("disk.img");
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(192 * MIB).unwrap();
    assert!(Command::new("losetup").arg("--set-capacity").arg(&bench.device).status().unwrap().success());

    bench.unlock(1).unwrap();

    assert!(total_bytes(&bench.target()) > before + 64 * MIB);
}

#[test]
fn a_disk_that_is_too_small_is_refused() {
    let Some(bench) = Bench::new(8 * MIB) else { return };

    assert_eq!(bench.unlock(1).unwrap_err().code(), "guest/disk-too-small");
}

fn total_bytes(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    stat.blocks() * stat.fragment_size()
}
