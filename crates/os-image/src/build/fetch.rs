//! Downloads packages with apt's own fetcher, so that the host's proxies and certificates apply.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dstack_manifest::Digest32;
use sha2::{Digest as _, Sha256};

use super::{Archives, BuildError, Lock, LockedPackage, Phase, Progress, Reporter};
use crate::tools;

const HELPER: &str = "/usr/lib/apt/apt-helper";
const BATCH: usize = 24;

/// Package files by SHA-256.
pub(super) struct PackageCache {
    dir: PathBuf,
}

impl PackageCache {
    pub(super) fn open(dir: PathBuf) -> Result<Self, BuildError> {
        fs::create_dir_all(&dir).map_err(BuildError::io("create", &dir))?;
        Ok(Self { dir })
    }

    /// Path of a package, whether it is there or not.
    pub(super) fn path(&self, package: &LockedPackage) -> PathBuf {
        self.dir.join(format!("{}.deb", package.sha256))
    }

    /// Makes the packages present. Returns those that nobody has any more.
    ///
    /// `lock`: where to look besides the mirror. Files in the cache were checked when they were put there.
    pub(super) fn fetch<'p>(
        &self,
        packages: &[&'p LockedPackage],
        archives: &Archives,
        lock: Option<&Lock>,
        report: &mut Reporter<'_>,
    ) -> Result<Vec<&'p LockedPackage>, BuildError> {
        let mut missing: BTreeMap<PathBuf, &LockedPackage> = BTreeMap::new();
        for package in packages {
            let path = self.path(package);
            let is_there = fs::metadata(&path).is_ok_and(|meta| meta.len() == package.bytes);
            if !is_there {
                missing.insert(path, package);
            }
        }
        let total = missing.values().map(|package| package.bytes).sum();
        let mut done = 0;
        let missing: Vec<&LockedPackage> = missing.into_values().collect();
        let mut gone = Vec::new();
        for batch in missing.chunks(BATCH) {
            let urls: Vec<_> = batch.iter().map(|package| (*package, archives.mirror_url(package))).collect();
            gone.extend(self.download(&urls)?);
            done += batch.iter().map(|package| package.bytes).sum::<u64>();
            report(Progress::Advanced { phase: Phase::Packages, done, total });
        }
        let (Some(lock), Some((probe, rest))) = (lock, gone.split_first()) else { return Ok(gone) };
        // One package tells whether the archive answers; the others would only wait for the same failure.
        let url = |package: &LockedPackage| archives.snapshot_url(package, &lock.snapshot);
        if !self.download(&[(*probe, url(probe))])?.is_empty() {
            return Ok(gone);
        }
        let urls: Vec<_> = rest.iter().map(|package| (*package, url(package))).collect();
        let mut still_gone = Vec::new();
        for batch in urls.chunks(BATCH) {
            still_gone.extend(self.download(batch)?);
        }
        Ok(still_gone)
    }

    /// Returns the packages that did not arrive, or not with their digest.
    fn download<'p>(&self, urls: &[(&'p LockedPackage, String)]) -> Result<Vec<&'p LockedPackage>, BuildError> {
        let staging = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&self.dir).map_err(BuildError::io("create", &self.dir))?;
        let target = |package: &LockedPackage| staging.path().join(package.sha256.to_string());
        let mut helper = Command::new(HELPER);
        for option in ["APT::Sandbox::User=", "Acquire::Retries=1", "Acquire::http::Timeout=20", "Acquire::https::Timeout=20"] {
            helper.arg("-o").arg(option);
        }
        helper.arg("download-file").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        for (package, url) in urls {
            helper.arg(url).arg(target(package)).arg(format!("SHA256:{}", package.sha256));
        }
        // It fails if one file fails; which ones arrived is seen from the files.
        helper.output().map_err(|source| tools::start_error(&helper, source))?;
        let mut failed = Vec::new();
        for (package, _) in urls {
            let arrived = target(package);
            if sha256(&arrived).is_ok_and(|digest| digest == package.sha256) {
                let path = self.path(package);
                fs::rename(&arrived, &path).map_err(BuildError::io("write", &path))?;
            } else {
                failed.push(*package);
            }
        }
        Ok(failed)
    }
}

/// SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> io::Result<Digest32> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = file.read(&mut buffer)?;
        match buffer.get(..length) {
            Some(chunk) if !chunk.is_empty() => hasher.update(chunk),
            _ => return Ok(Digest32::new(hasher.finalize().into())),
        }
    }
}
