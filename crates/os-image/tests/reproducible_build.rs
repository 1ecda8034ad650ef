//! A real build from Debian packages, twice, with nothing shared but the downloaded packages.
//!
//! Needs root or user namespaces for mmdebstrap, and the Debian mirror of this host. Without those it says so.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod workshop;

use std::{fs, path::Path};

use dstack_api::UserFacing as _;
use dstack_os_image::build::{self, BuildError, BuildOptions, Flavor, GuestPrograms, LOCK_NAME, Mirrors, Progress, RECIPE_NAME};
use tempfile::TempDir;
use workshop::{can_build, os_dir};

/// Nothing is shared between two builds but the downloaded packages.
fn options(root: &Path, flavor: Flavor) -> BuildOptions {
    workshop::options(root, flavor, &["packages"])
}

#[test]
fn two_builds_give_identical_bytes_and_the_third_is_reused() {
    if !can_build() {
        return;
    }
    let (one, two): (TempDir, TempDir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut quiet = |_: Progress| {};

    let first = build::build(&options(one.path(), Flavor::Development), &mut quiet).unwrap();
    let second_options = options(two.path(), Flavor::Development);
    let second = build::build(&second_options, &mut quiet).unwrap();
    let third = build::build(&second_options, &mut quiet).unwrap();

    assert!(!first.is_reused && !second.is_reused && third.is_reused);
    let mut names: Vec<_> = fs::read_dir(first.image.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 8, "{names:?}");
    for name in names {
        let bytes = |image: &dstack_os_image::Image| fs::read(image.dir().join(&name)).unwrap();
        assert!(bytes(&first.image) == bytes(&second.image), "{} differs", name.display());
    }
    dstack_os_image::verify(&first.image).unwrap();
    let rootfs = fs::metadata(first.image.rootfs()).unwrap().len();
    assert!(rootfs <= 260 << 20, "the root has {rootfs} bytes");
    // Nothing but the image is left in the store, no scratch space in the cache.
    assert_eq!(fs::read_dir(one.path().join("store")).unwrap().count(), 1);
    let left = fs::read_dir(one.path().join("cache")).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with('.'));
    assert!(!left);
}

/// A lock whose first needed package never existed.
fn recipe_with_lost_package(dir: &Path) {
    fs::copy(os_dir().join(RECIPE_NAME), dir.join(RECIPE_NAME)).unwrap();
    let lock = fs::read_to_string(os_dir().join(LOCK_NAME)).unwrap();
    let (head, rest) = lock.split_once("sha256 = \"").unwrap();
    let (digest, tail) = rest.split_once('"').unwrap();
    let lost = format!("{head}sha256 = \"{}\"{tail}", digest.chars().rev().collect::<String>());
    fs::write(dir.join(LOCK_NAME), lost).unwrap();
}

#[test]
fn production_refuses_a_package_that_is_gone() {
    if !can_build() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    recipe_with_lost_package(root.path());
    let options = BuildOptions { recipe_dir: root.path().to_owned(), ..options(root.path(), Flavor::Production) };

    let error = build::build(&options, &mut |_| {}).unwrap_err();

    assert!(matches!(error, BuildError::PackagesGone { .. }), "{error}");
    assert_eq!(error.code(), "os/locked-package-gone");
    assert!(error.fix().contains("dstack os lock"));
    assert!(!options.store.exists());
}

#[test]
fn refuses_without_guest_programs_and_mirrors() {
    let root = tempfile::tempdir().unwrap();
    let unreachable = Mirrors { debian: "http://127.0.0.1:9/debian".to_owned(), security: "http://127.0.0.1:9/security".to_owned() };
    let good = options(root.path(), Flavor::Development);

    let no_program = BuildOptions { guest: GuestPrograms { init: root.path().join("none"), ..good.guest.clone() }, ..good.clone() };
    let error = build::build(&no_program, &mut |_| {}).unwrap_err();
    assert_eq!(error.code(), "os/no-guest-program");

    let empty = tempfile::tempdir().unwrap();
    let no_recipe = BuildOptions { recipe_dir: empty.path().to_owned(), mirrors: Some(unreachable), ..good.clone() };
    let error = build::build(&no_recipe, &mut |_| {}).unwrap_err();
    assert_eq!(error.code(), "os/io");
    assert!(!good.store.exists());
}
