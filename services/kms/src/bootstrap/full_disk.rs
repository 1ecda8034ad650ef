//! A disk that fills up during bootstrap, onboarding and rotation: nothing half made is taken for whole, and space is all that is missing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic on purpose and say why they skip")]

use std::collections::BTreeSet;

use dstack_api::UserFacing as _;
use dstack_key_hierarchy::Secret;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::*;
use crate::{key_store::write_secret, sealing::Kind};

const NOW: u64 = 1_800_000_000;
const DISK_BYTES: u64 = 128 << 10;
const PAGE_BYTES: u64 = 4 << 10;

/// Runs `act` where a small disk is mounted that nobody else sees.
fn on_small_disk(act: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().to_owned();
    let alone = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            eprintln!("skipped: mount namespaces cannot be made here: {error}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let size = format!("size={DISK_BYTES}");
        mount(Some("none"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        act(&disk);
    });
    alone.join().unwrap();
}

fn at<T>(dir: &Path, act: impl FnOnce(&Site<'_>) -> T) -> T {
    let vault = Vault::under(Kind::SoftwareTee, &Secret::new([1; 32]));
    act(&Site { dir, vault: &vault, domain: &"kms.test".parse().unwrap(), attest: &|_| Ok(None), now: NOW })
}

/// Leaves so much of the disk free.
fn fill(disk: &Path, free_bytes: u64) {
    let mut filler = File::create(disk.join("filler")).unwrap();
    let page = vec![7; usize::try_from(PAGE_BYTES).unwrap()];
    while filler.write_all(&page).is_ok() {}
    let length = filler.metadata().unwrap().len();
    filler.set_len(length / PAGE_BYTES * PAGE_BYTES - free_bytes).unwrap();
}

fn names(disk: &Path) -> BTreeSet<String> {
    fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn must_be_full(error: &KeyStoreError) {
    assert_eq!(error.code(), "kms/cert-dir-io", "{error}");
    assert!(matches!(error, KeyStoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error:?}");
    assert!(error.fix().contains("space"), "{}", error.fix());
}

/// Lets `make` run on disks of every fullness.
fn keys_come_whole_or_not_at_all(make: fn(&Site<'_>) -> Result<KeyStore, KeyStoreError>) {
    on_small_disk(move |disk| {
        let dir = disk.join("kms");
        let (mut full, mut whole) = (0, 0);
        for pages in 0..20 {
            fill(disk, pages * PAGE_BYTES);
            match at(&dir, make) {
                Ok(_) => whole += 1,
                Err(error) => {
                    full += 1;
                    must_be_full(&error);
                    assert!(at(&dir, |site| site.load()).unwrap().is_none(), "{pages} pages: something half made is there");
                    fs::remove_file(disk.join("filler")).unwrap();
                    at(&dir, make).unwrap();
                }
            }
            let _ = fs::remove_file(disk.join("filler"));
            assert_eq!(names(disk), BTreeSet::from(["kms".to_owned()]), "{pages} pages");
            assert!(at(&dir, |site| site.load()).unwrap().is_some());
            fs::remove_dir_all(&dir).unwrap();
        }
        assert!(full > 0 && whole > 0, "the disks do not straddle what is needed: {full} full, {whole} whole");
    });
}

#[test]
fn a_bootstrap_on_a_full_disk_makes_nothing_and_is_done_again() {
    keys_come_whole_or_not_at_all(|site| site.load_or_create());
}

#[test]
fn an_onboarding_on_a_full_disk_takes_nothing_and_is_done_again() {
    keys_come_whole_or_not_at_all(|site| {
        let keys = NewKeys { origin: Origin::Brought(None), ..NewKeys::generate()? };
        site.create(&keys)
    });
}

#[test]
fn a_rotation_on_a_full_disk_leaves_the_epochs_as_they_were() {
    on_small_disk(|disk| {
        let dir = disk.join("kms");
        let vault = Vault::under(Kind::SoftwareTee, &Secret::new([1; 32]));
        let mut epochs = at(&dir, |site| site.load_or_create()).unwrap().epochs.into_inner().unwrap();
        for rotation in 1..=2 {
            epochs.rotate(&mut OsRng, NOW, 0, 10).unwrap();
            let files = names(&dir);
            fill(disk, 0);
            must_be_full(&write_secret(&dir, EPOCHS, &epochs.encode(), &vault).unwrap_err());
            let kept = at(&dir, |site| site.load()).unwrap().unwrap().epochs.into_inner().unwrap();
            assert_eq!((kept.all().len(), names(&dir)), (rotation, files));

            fs::remove_file(disk.join("filler")).unwrap();
            write_secret(&dir, EPOCHS, &epochs.encode(), &vault).unwrap();

            let kept = at(&dir, |site| site.load()).unwrap().unwrap().epochs.into_inner().unwrap();
            assert_eq!(kept.all().len(), rotation + 1);
        }
    });
}
