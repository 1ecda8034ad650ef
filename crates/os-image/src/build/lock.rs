//! `os/dstack-os.lock`: which package, which version, which bytes.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use dstack_manifest::Digest32;
use serde::{Deserialize, Serialize};

use super::{BuildError, Flavor, LOCK_NAME};

/// The only form there is.
const FORMAT: u32 = 1;

/// What a set of packages is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageSet {
    /// Root of a production image.
    Production,
    /// Root of a development image.
    Development,
    /// Kernel and modules.
    Kernel,
    /// Firmware.
    Firmware,
    /// Tools of the build.
    Tools,
}

impl PackageSet {
    /// The root of `flavor`.
    #[must_use]
    pub fn root(flavor: Flavor) -> Self {
        match flavor {
            Flavor::Production => Self::Production,
            Flavor::Development => Self::Development,
        }
    }

    /// Every set that an image of `flavor` needs.
    #[must_use]
    pub fn needed(flavor: Flavor) -> [Self; 4] {
        [Self::root(flavor), Self::Kernel, Self::Firmware, Self::Tools]
    }
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Suite it was found in, such as `trixie-security`.
    pub suite: String,
    /// Path below the archive.
    pub file: String,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Digest32,
    /// What it is for.
    pub sets: Vec<PackageSet>,
}

/// The lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// State of the snapshot archive that has all packages, `20261120T203000Z`.
    pub snapshot: String,
    /// The same as Unix seconds: the time stamp of every file.
    pub time: u64,
    /// Packages by name.
    #[serde(rename = "package", default)]
    pub packages: Vec<LockedPackage>,
}

impl Lock {
    /// A lock of `packages` at `time` (Unix seconds).
    #[must_use]
    pub fn new(mut packages: Vec<LockedPackage>, time: u64) -> Self {
        packages.sort();
        Self { format: FORMAT, snapshot: snapshot_time(time), time, packages }
    }

    /// Reads the lock file in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`BuildError::Io`], [`BuildError::Malformed`].
    pub fn load(dir: &Path) -> Result<Option<Self>, BuildError> {
        let path = dir.join(LOCK_NAME);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(BuildError::io("read", &path))?,
        };
        let lock: Self = toml::from_str(&text).map_err(|error| BuildError::Malformed { path: path.clone(), reason: error.to_string() })?;
        let fault = if lock.format == FORMAT {
            lock.packages
                .iter()
                .find(|package| !package.is_sane())
                .map(|package| format!("package {:?} has unusual characters", package.name))
        } else {
            Some(format!("format {} is not known", lock.format))
        };
        match fault {
            None => Ok(Some(lock)),
            Some(reason) => Err(BuildError::Malformed { path, reason }),
        }
    }

    /// The text of the lock file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from("# Made by `dstack os lock`. Do not edit.\n");
        let _ = writeln!(text, "format = {}\nsnapshot = \"{}\"\ntime = {}", self.format, self.snapshot, self.time);
        for package in &self.packages {
            let LockedPackage { name, version, architecture, suite, file, bytes, sha256, sets } = package;
            let sets: Vec<String> = sets.iter().map(|set| format!("\"{}\"", format!("{set:?}").to_lowercase())).collect();
            let _ = write!(
                text,
                "\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\narchitecture = \"{architecture}\"\nsuite = \"{suite}\"\n\
                 file = \"{file}\"\nbytes = {bytes}\nsha256 = \"{sha256}\"\nsets = [{}]\n",
                sets.join(", ")
            );
        }
        text
    }

    /// Packages of `set`, by name.
    pub fn set(&self, set: PackageSet) -> impl Iterator<Item = &LockedPackage> {
        self.packages.iter().filter(move |package| package.sets.contains(&set))
    }

    /// Each package by set and name.
    pub(super) fn by_name(&self) -> BTreeMap<(PackageSet, &str), &LockedPackage> {
        self.packages.iter().flat_map(|package| package.sets.iter().map(move |set| ((*set, package.name.as_str()), package))).collect()
    }
}

impl LockedPackage {
    /// `name version`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// Only the characters Debian allows: safe in URLs, paths and the lock file.
    fn is_sane(&self) -> bool {
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.:~_".contains(&byte));
        let path = self.file.split('/').all(|part| plain(part) && part != ".." && part != ".");
        plain(&self.name) && plain(&self.version) && plain(&self.architecture) && plain(&self.suite) && path
    }
}

/// `20261120T203000Z` for Unix seconds. Proleptic Gregorian, UTC.
fn snapshot_time(time: u64) -> String {
    let (days, seconds) = (time / 86_400, time % 86_400);
    // Days since 0000-03-01, in 400-year cycles (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn package(name: &str) -> LockedPackage {
        LockedPackage {
            name: name.to_owned(),
            version: "2:1.0~rc1-3+b1".to_owned(),
            architecture: "amd64".to_owned(),
            suite: "trixie".to_owned(),
            file: format!("pool/main/x/{name}_1.0~rc1-3+b1_amd64.deb"),
            bytes: 7,
            sha256: Digest32::new([1; 32]),
            sets: vec![PackageSet::Production, PackageSet::Tools],
        }
    }

    #[test]
    fn text_and_value_are_the_same_thing() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::new(vec![package("zlib1g"), package("bash")], 1_795_206_600);
        fs::write(dir.path().join(LOCK_NAME), lock.to_text()).unwrap();

        let read = Lock::load(dir.path()).unwrap().unwrap();

        assert_eq!(read, lock);
        assert_eq!(read.packages[0].name, "bash");
        assert_eq!(read.snapshot, "20261120T203000Z");
        assert_eq!(read.set(PackageSet::Kernel).count(), 0);
    }

    #[test]
    fn refuses_paths_that_leave_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let evil = LockedPackage { file: "pool/../../etc/passwd".to_owned(), ..package("bash") };
        fs::write(dir.path().join(LOCK_NAME), Lock::new(vec![evil], 0).to_text()).unwrap();

        assert!(matches!(Lock::load(dir.path()), Err(BuildError::Malformed { .. })));
    }
}
