//! The process table: one JSON file per process, replaced atomically.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use dstack_api::supervisor::{ProcessConfig, ProcessStatus};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{Error, identity::Identity};

/// A process as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) config: ProcessConfig,
    /// Wanted to run.
    pub(crate) started: bool,
    pub(crate) status: ProcessStatus,
    pub(crate) ended: String,
    /// Set before the process exists, so that it is found should we die before its identity is written.
    pub(crate) launch: Option<String>,
    /// Set while it runs.
    pub(crate) identity: Option<Identity>,
    pub(crate) started_at: Option<u64>,
    pub(crate) stopped_at: Option<u64>,
}

/// The directory of records, owned by one supervisor at a time.
#[derive(Debug)]
pub(crate) struct Table {
    directory: PathBuf,
    _lock: Flock<fs::File>,
}

impl Table {
    /// Opens or creates the directory and takes its lock.
    ///
    /// Errors: not accessible, or another supervisor has it.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Table { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let file = fs::File::options().create(true).append(true).open(directory.join("lock")).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked(directory.to_owned()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// Every record that can be read; a broken file is logged and kept.
    pub(crate) fn load(&self) -> Result<Vec<Record>, Error> {
        let entries = fs::read_dir(&self.directory).map_err(|source| Error::Table { path: self.directory.clone(), source })?;
        let paths =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut records = Vec::new();
        for path in paths {
            match fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)) {
                Ok(record) => records.push(record),
                Err(error) => tracing::error!(path = %path.display(), %error, "record cannot be read"),
            }
        }
        Ok(records)
    }

    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.config.id);
        let write = || dstack_service::fs::write_atomic(&path, &serde_json::to_vec_pretty(record).map_err(io::Error::from)?, 0o600);
        write().map_err(|source| Error::Table { path: path.clone(), source })
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Table { path, source }),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}
