//! An image directory is accepted only as it was built.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use dstack_api::UserFacing as _;
use dstack_measurement::checksum::{binding_line, os_image_hash};
use dstack_os_image::{Image, ImageError, ImageStore, verify, verity};
use tempfile::TempDir;

/// An image without a measurement document, whose boot files need not be real.
struct Fixture {
    store: TempDir,
    dir: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join("dstack-0.0.1");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("rootfs.img"), vec![7; 300 * 4096]).unwrap();
        let mut file = File::options().read(true).write(true).open(dir.join("rootfs.img")).unwrap();
        let root = verity::append(&mut file, 300 * 4096).unwrap();
        let metadata = format!(
            r#"{{"bios":"ovmf.fd","kernel":"bzImage","initrd":"initramfs.cpio","rootfs":"rootfs.img","version":"0.0.1",
               "cmdline":"console=ttyS0 dstack.rootfs_hash={root} dstack.rootfs_size={}"}}"#,
            300 * 4096
        );
        fs::write(dir.join("metadata.json"), metadata).unwrap();
        for name in ["ovmf.fd", "bzImage", "initramfs.cpio"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let fixture = Self { store, dir };
        fixture.write_checksums(&["ovmf.fd", "bzImage", "initramfs.cpio", "metadata.json"]);
        fixture
    }

    fn write_checksums(&self, names: &[&str]) {
        let text: String = names.iter().map(|name| binding_line(name, &fs::read(self.dir.join(name)).unwrap())).collect();
        fs::write(self.dir.join("sha256sum.txt"), &text).unwrap();
        fs::write(self.dir.join("digest.txt"), format!("{}\n", os_image_hash(text.as_bytes()))).unwrap();
    }

    fn flip(&self, name: &str, offset: usize) {
        let path = self.dir.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[offset] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    fn verify(&self) -> Result<(), ImageError> {
        verify(&Image::load(&self.dir)?).map(drop)
    }
}

fn must_be_tampered(result: Result<(), ImageError>, clue: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), "image/tampered", "{error}");
    assert!(error.to_string().contains(clue), "{error}");
    assert!(error.fix().contains("dstack os build"));
}

#[test]
fn accepts_an_intact_image() {
    Fixture::new().verify().unwrap();
}

#[test]
fn refuses_a_changed_boot_file() {
    for name in ["ovmf.fd", "bzImage", "initramfs.cpio"] {
        let fixture = Fixture::new();
        fixture.flip(name, 1);

        must_be_tampered(fixture.verify(), name);
    }
}

#[test]
fn refuses_a_changed_root_file_system_and_tree() {
    for (offset, clue) in [(5 * 4096, "dm-verity root"), (300 * 4096 + 100, "hash tree"), (302 * 4096, "hash tree")] {
        let fixture = Fixture::new();
        fixture.flip("rootfs.img", offset);

        must_be_tampered(fixture.verify(), clue);
    }
}

#[test]
fn refuses_a_truncated_root_file_system() {
    for length in [10 * 4096, 301 * 4096] {
        let fixture = Fixture::new();
        File::options().write(true).open(fixture.dir.join("rootfs.img")).unwrap().set_len(length).unwrap();

        must_be_tampered(fixture.verify(), "rootfs.img");
    }
}

#[test]
fn refuses_a_digest_of_another_image() {
    let fixture = Fixture::new();
    fs::write(fixture.dir.join("digest.txt"), "00".repeat(32)).unwrap();

    must_be_tampered(fixture.verify(), "digest.txt");
}

#[test]
fn refuses_a_boot_file_that_nothing_binds() {
    let fixture = Fixture::new();
    fixture.write_checksums(&["ovmf.fd", "bzImage", "metadata.json"]);

    must_be_tampered(fixture.verify(), "initramfs.cpio is not listed");
}

#[test]
fn refuses_files_outside_of_the_directory() {
    let fixture = Fixture::new();
    let elsewhere = fixture.store.path().join("elsewhere");
    fs::rename(fixture.dir.join("bzImage"), &elsewhere).unwrap();
    symlink(&elsewhere, fixture.dir.join("bzImage")).unwrap();

    let error = fixture.verify().unwrap_err();

    assert_eq!(error.code(), "image/foreign-file");
}

#[test]
fn store_answers_with_names_and_reasons() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.store.path().join("broken")).unwrap();
    fs::write(fixture.store.path().join("broken/metadata.json"), "{").unwrap();
    let store = ImageStore::new(fixture.store.path());

    let entries = store.list().unwrap();

    assert_eq!(
        entries.iter().map(|entry| (entry.name.as_str(), entry.image.is_ok())).collect::<Vec<_>>(),
        [("broken", false), ("dstack-0.0.1", true)]
    );
    assert_eq!(store.load("dstack-0.0.1").unwrap().name(), "dstack-0.0.1");
    assert_eq!(store.load("dstack-9").unwrap_err().code(), "image/not-found");
    for name in ["../dstack-0.0.1", "", ".hidden", "a/b", "a,b"] {
        assert_eq!(store.load(name).unwrap_err().code(), "image/bad-name", "{name}");
    }
    assert!(ImageStore::new(Path::new("/nonexistent")).list().unwrap().is_empty());
}
