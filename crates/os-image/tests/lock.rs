//! `dstack os lock` and what a build does when a locked package is gone, against an archive of this machine's own.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod local_archive;
mod workshop;

use std::{fs, process::Command};

use dstack_api::UserFacing as _;
use dstack_os_image::build::{
    self, BuildError, BuildOptions, Flavor, LOCK_NAME, Lock, LockOptions, LockReport, LockedPackage, PackageSet, Progress, Replaced,
};
use local_archive::{LocalArchive, Package, packages_of};
use tempfile::TempDir;
use workshop::{os_dir, shared_cache};

/// 2026-11-20T20:30:00Z.
const THEN: u64 = 1_795_206_600;
const THEN_SNAPSHOT: &str = "20261120T203000Z";
const A_DAY: u64 = 86_400;

/// A recipe with an archive that has what it asks for.
struct Bench {
    root: TempDir,
    archive: LocalArchive,
    packages: Vec<Package>,
}

impl Bench {
    fn new() -> Self {
        let (root, archive) = (tempfile::tempdir().unwrap(), LocalArchive::new());
        archive.write_recipe(&os_dir(), root.path());
        let packages = packages_of(root.path());
        archive.publish(&packages);
        Self { root, archive, packages }
    }

    fn lock(&self, now: u64) -> Result<LockReport, BuildError> {
        let options = LockOptions {
            recipe_dir: self.root.path().to_owned(),
            cache: self.root.path().join("cache"),
            mirrors: Some(self.archive.mirrors()),
            now,
        };
        build::lock(&options, &mut |_| {})
    }

    fn lock_file(&self) -> Lock {
        Lock::load(self.root.path()).unwrap().unwrap()
    }

    /// A newer version takes the place of `name`.
    fn upgrade(&mut self, name: &str, version: &str) -> Package {
        let needle = format!("Package: {name}\n");
        let package = self.packages.iter_mut().find(|package| package.control.starts_with(&needle)).unwrap();
        let old = std::mem::replace(package, Package::named(name, version, &package.suite));
        self.archive.publish(&self.packages);
        old
    }

    /// The notes and the error of a build. These packages are only names, so it goes no further than unpacking.
    fn build(&self, flavor: Flavor) -> (Vec<String>, BuildError) {
        let options = BuildOptions {
            recipe_dir: self.root.path().to_owned(),
            mirrors: Some(self.archive.mirrors()),
            ..workshop::options(self.root.path(), flavor, &[])
        };
        let mut notes = Vec::new();
        let error = build::build(&options, &mut |event| notes.extend(note(event))).unwrap_err();
        (notes, error)
    }

    fn has_file_of(&self, package: &Package) -> bool {
        self.root.path().join("cache/packages").join(format!("{}.deb", package.sha256)).is_file()
    }
}

fn note(event: Progress) -> Option<String> {
    match event {
        Progress::Note(text) => Some(text),
        _ => None,
    }
}

fn versions(lock: &Lock) -> Vec<(&str, &str)> {
    lock.packages.iter().map(|package| (package.name.as_str(), package.version.as_str())).collect()
}

#[test]
fn a_first_lock_names_version_digest_place_and_use_of_every_package() {
    let bench = Bench::new();

    let report = bench.lock(THEN).unwrap();

    let lock = bench.lock_file();
    assert_eq!(report.path, bench.root.path().join(LOCK_NAME));
    // The kernel's own package only depends on its parts; it has no file to unpack.
    assert_eq!((report.packages, report.changed.len()), (bench.packages.len() - 1, bench.packages.len() - 1));
    assert_eq!((lock.snapshot.as_str(), lock.time), (THEN_SNAPSHOT, THEN));
    let jq = lock.packages.iter().find(|package| package.name == "jq").unwrap();
    let expected = bench.packages.iter().find(|package| package.control.starts_with("Package: jq\n")).unwrap();
    assert_eq!((jq.version.as_str(), jq.suite.as_str(), &jq.file, jq.bytes), ("1.0", "trixie", &expected.file, expected.bytes));
    assert_eq!(jq.sha256.to_string(), expected.sha256);
    assert_eq!(jq.sets, [PackageSet::Production, PackageSet::Development]);
    let kernel: Vec<&str> = lock.set(PackageSet::Kernel).map(|package| package.suite.as_str()).collect();
    assert_eq!(kernel, ["trixie-backports"; 3]);
}

#[test]
fn a_renewed_lock_changes_time_and_what_the_archive_changed() {
    let mut bench = Bench::new();
    let _first = bench.lock(THEN).unwrap();
    let before = bench.lock_file();
    bench.upgrade("jq", "1.1");

    let report = bench.lock(THEN + A_DAY).unwrap();

    let changed = Replaced { name: "jq".to_owned(), locked: Some("1.0".to_owned()), used: Some("1.1".to_owned()) };
    assert_eq!(report.changed, [changed]);
    let after = bench.lock_file();
    assert_eq!((after.snapshot.as_str(), after.time), ("20261121T203000Z", THEN + A_DAY));
    let differing: Vec<_> = versions(&before).into_iter().zip(versions(&after)).filter(|(old, new)| old != new).collect();
    assert_eq!(differing, [(("jq", "1.0"), ("jq", "1.1"))]);
}

#[test]
fn a_lock_that_cannot_be_renewed_stays() {
    let bench = Bench::new();
    let _first = bench.lock(THEN).unwrap();
    let before = fs::read(bench.root.path().join(LOCK_NAME)).unwrap();
    bench.archive.take_down();

    let error = bench.lock(THEN + A_DAY).unwrap_err();

    assert_eq!(error.code(), "tool/failed", "{error}");
    assert!(!error.fix().is_empty());
    assert_eq!(fs::read(bench.root.path().join(LOCK_NAME)).unwrap(), before);
    let mut files: Vec<_> = fs::read_dir(bench.root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["cache", "dstack-os.lock", "dstack-os.toml"]);
}

#[test]
fn a_package_that_mirrors_dropped_comes_from_the_archive_of_past_states() {
    let mut bench = Bench::new();
    let _locked = bench.lock(THEN).unwrap();
    let old = bench.upgrade("jq", "1.1");
    bench.archive.retire(&old, THEN_SNAPSHOT);

    let (notes, error) = bench.build(Flavor::Production);

    assert!(matches!(error, BuildError::Tool(_)), "the packages are there, and are no packages: {error}");
    assert_eq!(notes, Vec::<String>::new());
    assert!(bench.has_file_of(&old));
}

#[test]
fn another_time_of_the_archive_of_past_states_will_not_do() {
    let mut bench = Bench::new();
    let _locked = bench.lock(THEN).unwrap();
    let old = bench.upgrade("jq", "1.1");
    bench.archive.retire(&old, "20261119T203000Z");

    let (_, error) = bench.build(Flavor::Production);

    assert!(matches!(&error, BuildError::PackagesGone { packages } if packages == &["jq 1.0"]), "{error}");
}

#[test]
fn other_bytes_under_the_locked_version_are_told_as_well() {
    let mut bench = Bench::new();
    let _locked = bench.lock(THEN).unwrap();
    for package in &mut bench.packages {
        if package.control.starts_with("Package: jq\n") {
            let content = b"rebuilt".to_vec();
            package.sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
            (package.bytes, package.content) = (content.len() as u64, Some(content));
        }
    }
    bench.archive.publish(&bench.packages);

    let (refused, error) = bench.build(Flavor::Production);
    assert!(matches!(&error, BuildError::PackagesGone { packages } if packages == &["jq 1.0"]), "{error}");
    assert_eq!(refused, Vec::<String>::new());

    let (notes, _) = bench.build(Flavor::Development);
    assert!(notes[0].starts_with("unlocked development image: 1 packages differ"), "{notes:?}");
}

/// The packages of the repository's lock as an archive would list them today, with one more version of `strace` than the lock knows.
fn archive_of(lock: &Lock) -> Vec<Package> {
    let describe = |package: &LockedPackage| {
        let file = shared_cache("packages").join(format!("{}.deb", package.sha256));
        assert!(file.is_file(), "{} is not in the cache: run `make image`", package.label());
        let control = Command::new("dpkg-deb").arg("--field").arg(&file).output().unwrap();
        Package {
            suite: package.suite.clone(),
            file: package.file.clone(),
            control: String::from_utf8(control.stdout).unwrap(),
            bytes: package.bytes,
            sha256: package.sha256.to_string(),
            content: None,
        }
    };
    let is_wanted = |package: &&LockedPackage| package.sets.iter().any(|set| PackageSet::needed(Flavor::Development).contains(set));
    let mut packages: Vec<Package> = lock.packages.iter().filter(is_wanted).map(describe).collect();
    // What the kernel's package depends on has files; itself it has none in the lock.
    let parts: Vec<String> = lock.set(PackageSet::Kernel).map(|package| format!("{} (= {})", package.name, package.version)).collect();
    let kernel = Package::named("linux-image-cloud-amd64", "9", "trixie-backports");
    packages.push(kernel.with(&format!("Depends: {}", parts.join(", "))));
    packages
}

/// Makes the lock name a version of `strace` that nobody has.
fn lose_strace(lock: &mut Lock) {
    for package in lock.packages.iter_mut().filter(|package| package.name == "strace") {
        package.version = "6.12-1".to_owned();
        package.file = "pool/main/s/strace/strace_6.12-1_amd64.deb".to_owned();
        package.sha256 = dstack_manifest::Digest32::new([7; 32]);
    }
}

#[test]
fn development_goes_on_with_the_current_version_says_so_and_marks_the_image() {
    if !workshop::can_build() {
        return;
    }
    let (root, archive) = (tempfile::tempdir().unwrap(), LocalArchive::new());
    archive.write_recipe(&os_dir(), root.path());
    let mut lock = Lock::load(&os_dir()).unwrap().unwrap();
    archive.publish(&archive_of(&lock));
    let current = lock.packages.iter().find(|package| package.name == "strace").unwrap().version.clone();
    lose_strace(&mut lock);
    fs::write(root.path().join(LOCK_NAME), lock.to_text()).unwrap();
    let shared = ["packages", "tools", "kernel", "base"];
    let options = BuildOptions {
        recipe_dir: root.path().to_owned(),
        mirrors: Some(archive.mirrors()),
        ..workshop::options(root.path(), Flavor::Development, &shared)
    };
    let mut notes = Vec::new();

    let report = build::build(&options, &mut |event| notes.extend(note(event))).unwrap();

    let replaced = Replaced { name: "strace".to_owned(), locked: Some("6.12-1".to_owned()), used: Some(current) };
    assert!(report.replaced.contains(&replaced), "{:?}", report.replaced);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("unlocked development image: ") && notes[0].contains("strace 6.12-1"), "{notes:?}");
    assert!(notes[0].contains("dstack os lock"), "{notes:?}");
    let image = dstack_os_image::Image::load(report.image.dir()).unwrap();
    assert!(image.metadata().unlocked);
    dstack_os_image::verify(&image).unwrap();
    // It is never taken for the image that the lock describes.
    assert!(!root.path().join("cache/images").exists());
}
