//! A Debian archive in a folder: signed, with the suites of the recipe, read by apt through its `copy:` method. No network.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dstack_os_image::build::{Mirrors, RECIPE_NAME, Recipe};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const RELEASE: &str = "trixie";
const SUITES: [&str; 4] = ["trixie", "trixie-security", "trixie-updates", "trixie-backports"];

/// A package of the archive.
#[derive(Debug, Clone)]
pub struct Package {
    pub suite: String,
    /// Path below the archive.
    pub file: String,
    /// Fields of the index, without file, size and digest.
    pub control: String,
    pub bytes: u64,
    pub sha256: String,
    /// What the archive hands out under `file`; `None` if the index names a file that is not there.
    pub content: Option<Vec<u8>>,
}

impl Package {
    /// A package that is only a name: nothing can unpack it.
    pub fn named(name: &str, version: &str, suite: &str) -> Self {
        let content = format!("{name} {version}").into_bytes();
        Self {
            suite: suite.to_owned(),
            file: format!("pool/main/{name}_{version}_amd64.deb"),
            control: format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n"),
            bytes: content.len() as u64,
            sha256: hex::encode(Sha256::digest(&content)),
            content: Some(content),
        }
    }

    pub fn with(mut self, field: &str) -> Self {
        self.control.push_str(field);
        self.control.push('\n');
        self
    }
}

/// Everything that the recipe in `dir` asks for, each package only a name.
pub fn packages_of(recipe_dir: &Path) -> Vec<Package> {
    let (recipe, _) = Recipe::load(recipe_dir).unwrap();
    let parts = &recipe.packages;
    let plain = parts.base.iter().chain(&parts.development).chain(&parts.tools).chain([&parts.firmware]);
    let mut names: Vec<&String> = plain.collect();
    names.sort();
    names.dedup();
    let mut packages: Vec<Package> = names.into_iter().map(|name| Package::named(name, "1.0", RELEASE)).collect();
    packages.push(Package::named("base-files", "13.8+deb13u7", RELEASE).with("Essential: yes"));
    let kernel_parts: Vec<String> = parts.kernel_parts.iter().map(|prefix| format!("{prefix}x")).collect();
    packages.extend(kernel_parts.iter().map(|name| Package::named(name, "7.2", "trixie-backports")));
    let kernel = Package::named(&parts.kernel, "7.2", "trixie-backports");
    packages.push(kernel.with(&format!("Depends: {}", kernel_parts.join(", "))));
    packages
}

/// The archive.
pub struct LocalArchive {
    dir: TempDir,
}

impl LocalArchive {
    /// An empty one with a key of its own.
    pub fn new() -> Self {
        let archive = Self { dir: tempfile::Builder::new().prefix("archive-").tempdir().unwrap() };
        fs::DirBuilder::new().mode(0o700).create(archive.keys()).unwrap();
        archive.gpg(&["--passphrase", "", "--quick-generate-key", "archive", "ed25519", "sign"]);
        let keyring = archive.keyring();
        archive.gpg(&["--output", keyring.to_str().unwrap(), "--export"]);
        archive
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    fn keyring(&self) -> PathBuf {
        self.dir.path().join("archive.gpg")
    }

    fn gpg(&self, arguments: &[&str]) {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(self.keys()).args(["--batch", "--yes", "--quiet"]).args(arguments).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|error| panic!("gpg: {error} (apt-get install gpg gpg-agent)"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Where the mirrors are.
    pub fn mirrors(&self) -> Mirrors {
        let root = self.dir.path().display();
        Mirrors { debian: format!("copy:{root}/debian"), security: format!("copy:{root}/debian-security") }
    }

    /// Writes the recipe at `from` into `to`, with this archive's key and past states.
    pub fn write_recipe(&self, from: &Path, to: &Path) {
        let text = fs::read_to_string(from.join(RECIPE_NAME)).unwrap();
        let settings = [
            ("keyring", self.keyring().display().to_string()),
            ("snapshot", format!("copy:{}/past/{{archive}}/{{time}}", self.dir.path().display())),
        ];
        let line = |line: &str| match settings.iter().find(|(key, _)| line.starts_with(&format!("{key} ="))) {
            Some((key, value)) => format!("{key} = {value:?}\n"),
            None => format!("{line}\n"),
        };
        fs::write(to.join(RECIPE_NAME), text.lines().map(line).collect::<String>()).unwrap();
    }

    /// Makes these the packages of the archive.
    pub fn publish(&self, packages: &[Package]) {
        for suite in SUITES {
            let root = self.root(suite);
            let folder = root.join("dists").join(suite);
            let mut index = String::new();
            for package in packages.iter().filter(|package| package.suite == suite) {
                let Package { file, control, bytes, sha256, content, .. } = package;
                write!(index, "{}\nFilename: {file}\nSize: {bytes}\nSHA256: {sha256}\n\n", control.trim_end()).unwrap();
                if let Some(content) = content {
                    write(&root.join(file), content);
                }
            }
            write(&folder.join("main/binary-amd64/Packages"), index.as_bytes());
            let release = format!(
                "Suite: {suite}\nCodename: {suite}\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n {} {} \
                 main/binary-amd64/Packages\n",
                hex::encode(Sha256::digest(&index)),
                index.len()
            );
            write(&folder.join("Release"), release.as_bytes());
            let (plain, signed) = (folder.join("Release"), folder.join("InRelease"));
            self.gpg(&["--output", signed.to_str().unwrap(), "--clearsign", plain.to_str().unwrap()]);
        }
    }

    /// Moves a package from the mirror to the archive of past states at `time`, as mirrors do when a newer one arrives.
    pub fn retire(&self, package: &Package, time: &str) {
        let to = self.dir.path().join("past/debian").join(time).join(&package.file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(self.root(&package.suite).join(&package.file), to).unwrap();
    }

    /// The mirror is gone.
    pub fn take_down(&self) {
        fs::remove_dir_all(self.root(RELEASE)).unwrap();
    }

    fn root(&self, suite: &str) -> PathBuf {
        self.dir.path().join(if suite.ends_with("-security") { "debian-security" } else { "debian" })
    }
}

impl Drop for LocalArchive {
    fn drop(&mut self) {
        // gpg leaves its agent running.
        let _best_effort = Command::new("gpgconf").arg("--homedir").arg(self.keys()).args(["--kill", "gpg-agent"]).output();
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
