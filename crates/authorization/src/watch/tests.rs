#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_service::fs::write_atomic;

use super::*;

const IMAGE: &str = "[[os_images]]\nhash = \"0101010101010101010101010101010101010101010101010101010101010101\"\n";

fn write(path: &Path, text: &str) {
    write_atomic(path, text.as_bytes(), 0o644).unwrap();
}

#[test]
fn follows_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allow.toml");
    write(&path, "version = 1\n");
    let watched = WatchedAllowList::open(&path).unwrap();
    assert!(watched.current().os_images().is_empty());

    write(&path, &format!("version = 1\n{IMAGE}"));
    assert_eq!(watched.current().os_images().len(), 1);

    write(&path, "version = 1\n");
    assert!(watched.current().os_images().is_empty());
}

#[test]
fn keeps_the_last_good_list_while_the_file_is_bad_or_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allow.toml");
    write(&path, &format!("version = 1\n{IMAGE}"));
    let watched = WatchedAllowList::open(&path).unwrap();

    write(&path, "version = 7\n");
    assert_eq!(watched.current().os_images().len(), 1);

    std::fs::remove_file(&path).unwrap();
    assert_eq!(watched.current().os_images().len(), 1);

    write(&path, "version = 1\n");
    assert!(watched.current().os_images().is_empty());
}

#[test]
fn does_not_start_with_a_bad_list() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allow.toml");
    write(&path, "version = 7\n");

    assert!(WatchedAllowList::open(&path).is_err());
    assert!(WatchedAllowList::open(directory.path().join("none")).is_err());
}
