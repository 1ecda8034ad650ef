//! The host share as a real FAT32 image made by dosfstools and mtools, good and hostile.

#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use dstack_api::UserFacing as _;
use dstack_guest::boot::{
    host_config::HostConfigRead,
    host_share::{HostShareError, UnverifiedShare},
    layout::Layout,
};
use dstack_manifest::host_share as files;

const APP: &str = r#"{"manifest_version":2,"name":"t","runner":"docker-compose","docker_compose_file":"services: {}","key_provider":"kms","secure_time":false}"#;
const SYS: &str = r#"{"kms_urls":["https://10.0.2.2:9443"],"host_api_url":"vsock://2:10001/api","vm_config":"{\"cpu_count\":2}"}"#;

struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = Self { directory };
        fs::File::create(image.path()).unwrap().set_len(128 << 20).unwrap();
        must_run("mkfs.vfat", &["-F", "32", "-n", "DSTACKSHR"], &image.path());
        image
    }

    fn good() -> Self {
        let image = Self::new();
        image.put("app-compose.json", APP.as_bytes());
        image.put(".sys-config.json", SYS.as_bytes());
        image
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("share.img")
    }

    fn put(&self, name: &str, content: &[u8]) {
        let source = self.directory.path().join("source");
        fs::write(&source, content).unwrap();
        let status = Command::new("mcopy").arg("-i").arg(self.path()).arg(&source).arg(format!("::{name}")).status().unwrap();
        assert!(status.success());
    }

    fn read(&self) -> Result<UnverifiedShare, HostShareError> {
        UnverifiedShare::read(&self.path())
    }

    fn config(&self) -> Result<HostConfigRead, String> {
        let share = self.read().map_err(|error| error.to_string())?;
        HostConfigRead::from_share(&share, &Layout::below(self.directory.path())).map_err(|error| format!("{} {error}", error.code()))
    }

    /// Overwrites every occurrence of `from` in the image.
    fn patch(&self, from: &[u8], to: &[u8]) {
        let mut bytes = fs::read(self.path()).unwrap();
        let hits: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, window)| *window == from).map(|(at, _)| at).collect();
        assert!(!hits.is_empty());
        for at in hits {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        fs::write(self.path(), bytes).unwrap();
    }
}

fn must_run(program: &str, arguments: &[&str], last: &Path) {
    let output = Command::new(program).args(arguments).arg(last).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

#[test]
fn files_are_read_and_stored_for_root_only() {
    let image = Image::good();
    image.put("other.txt", b"ignored");
    image.put(".encrypted-env", &[7; 100]);

    let share = image.read().unwrap();
    let target = image.directory.path().join("copy");
    share.store(&target).unwrap();

    assert_eq!(share.get(files::APP_COMPOSE), Some(APP.as_bytes()));
    assert_eq!(fs::read(target.join(".encrypted-env")).unwrap(), [7; 100]);
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(target.join("app-compose.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!target.join("other.txt").exists());
    assert!(share.store(&target).is_err(), "an existing directory must not be reused");
}

#[test]
fn configuration_is_parsed_with_its_identity() {
    let image = Image::good();
    image.put(".instance_info", br#"{"app_id":"00112233445566778899aabbccddeeff00112233"}"#);

    let config = image.config().unwrap();

    assert_eq!(config.app_id.to_string(), "00112233445566778899aabbccddeeff00112233");
    assert_eq!(config.instance_id.as_bytes().len(), 20);
    assert_eq!(config.host_address().port, 10_001);
    assert_eq!(config.vm_config.cpu_count, 2);
    assert_eq!(config.app.raw(), APP.as_bytes());
}

#[test]
fn an_instance_keeps_its_identity_when_the_host_hands_the_seed_back() {
    let image = Image::good();
    let first = image.config().unwrap();
    image.put(".instance_info", serde_json::to_string(&first.instance_info()).unwrap().as_bytes());

    let second = image.config().unwrap();

    assert_eq!(second.instance_id, first.instance_id);
}

#[test]
fn a_required_file_that_is_missing_is_named() {
    let image = Image::new();
    image.put("app-compose.json", APP.as_bytes());

    assert_eq!(image.read().unwrap_err().to_string(), "the host share has no file .sys-config.json");
}

#[test]
fn a_file_over_its_cap_is_refused() {
    let image = Image::good();
    image.put(".instance_info", &vec![b' '; 10 * 1024 + 1]);

    assert!(matches!(image.read(), Err(HostShareError::TooLarge { name: ".instance_info", .. })));
}

#[test]
fn a_directory_with_the_name_of_a_file_is_refused() {
    let image = Image::good();
    let status = Command::new("mmd").arg("-i").arg(image.path()).arg("::.encrypted-env").status().unwrap();
    assert!(status.success());

    assert!(matches!(image.read(), Err(HostShareError::NotAFile { name: ".encrypted-env" })));
}

#[test]
fn a_length_that_lies_is_refused() {
    let image = Image::new();
    image.put("app-compose.json", APP.as_bytes());
    image.put(".sys-config.json", &[b' '; 77]);
    image.patch(&77_u32.to_le_bytes(), &31_000_u32.to_le_bytes());

    assert!(image.config().is_err());
}

#[test]
fn what_is_no_file_system_is_refused_without_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    for content in [vec![], vec![0; 4096], vec![0xff; 1 << 20], b"MZ".repeat(100_000)] {
        fs::write(&path, content).unwrap();
        assert_eq!(UnverifiedShare::read(&path).unwrap_err().code(), "guest/host-share-unreadable");
    }
    assert!(UnverifiedShare::read(&directory.path().join("missing")).is_err());
}

#[test]
fn damaged_structures_never_yield_other_content() {
    let image = Image::good();
    let disk = fs::OpenOptions::new().read(true).write(true).open(image.path()).unwrap();
    for at in (0..512).chain(16_384..16_640) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        disk.write_all_at(&[byte[0] ^ 0xff], at).unwrap();

        if let Ok(share) = image.read() {
            assert_eq!(share.get(files::APP_COMPOSE), Some(APP.as_bytes()), "byte {at}");
        }

        disk.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn documents_that_are_not_what_they_should_be_are_refused() {
    for (name, content, code) in [
        ("app-compose.json", "{", "guest/app-compose-refused"),
        (
            "app-compose.json",
            r#"{"manifest_version":4,"name":"t","runner":"docker-compose","docker_compose_file":"x"}"#,
            "guest/app-compose-refused",
        ),
        (".sys-config.json", "[]", "guest/host-config-refused"),
        (".sys-config.json", r#"{"vm_config":"no"}"#, "guest/host-config-refused"),
        (".instance_info", r#"{"app_id":"00"}"#, "guest/host-config-refused"),
        (".instance_info", r#"{"instance_id_seed":"zz"}"#, "guest/host-config-refused"),
    ] {
        let image = Image::new();
        for (file, good) in [("app-compose.json", APP), (".sys-config.json", SYS)] {
            if file != name {
                image.put(file, good.as_bytes());
            }
        }
        image.put(name, content.as_bytes());

        let error = image.config().unwrap_err();
        assert!(error.starts_with(code), "{name} {content}: {error}");
    }
}
