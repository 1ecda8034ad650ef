//! An allow list that follows its file.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use dstack_api::UserFacing as _;

use crate::{AllowList, AllowListError};

/// Changes of one reload that are logged one by one.
const MAX_AUDITED_CHANGES: usize = 100;

/// Identity and version of a file's content as far as `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Reads its file again whenever it changed. A file that became invalid or vanished changes nothing: the last good list
/// stays in force and the error is logged once.
#[derive(Debug)]
pub struct WatchedAllowList {
    path: PathBuf,
    state: Mutex<(Option<Stamp>, Arc<AllowList>)>,
}

impl WatchedAllowList {
    /// Loads the list; it must be good at the start.
    ///
    /// Errors: as [`AllowList::load`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, AllowListError> {
        let path = path.into();
        let stamp = stamp(&path);
        let list = AllowList::load(&path)?;
        warn_of_danger(&path, &list);
        Ok(Self { path, state: Mutex::new((stamp, Arc::new(list))) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The list in force now. Costs one `stat` when nothing changed.
    #[must_use]
    pub fn current(&self) -> Arc<AllowList> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Stamped before reading: a change during the read is seen at the next call.
        let now = stamp(&self.path);
        if now != state.0 {
            state.0 = now;
            match AllowList::load(&self.path) {
                Ok(list) => {
                    audit(&self.path, &state.1, &list);
                    warn_of_danger(&self.path, &list);
                    state.1 = Arc::new(list);
                }
                Err(error) => {
                    tracing::error!(path = %self.path.display(), code = error.code(), error = %error, fix = error.fix(), "allow list is not usable, the last good one stays in force");
                }
            }
        }
        Arc::clone(&state.1)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

/// What a new list allows and no longer allows, for the operator's audit.
fn audit(path: &Path, before: &AllowList, after: &AllowList) {
    let changes = before.changes_to(after);
    for change in changes.iter().take(MAX_AUDITED_CHANGES) {
        tracing::info!(target: "dstack_authorization::audit", path = %path.display(), %change, "policy changed");
    }
    let (apps, os_images) = (after.apps().len(), after.os_images().len());
    tracing::info!(target: "dstack_authorization::audit", path = %path.display(), apps, os_images, changes = changes.len(), "allow list reloaded");
}

fn warn_of_danger(path: &Path, list: &AllowList) {
    if list.accepts_simulated() {
        tracing::warn!(path = %path.display(), setting = "danger.allow_simulated", "simulated evidence is accepted: keys are not protected by hardware");
    }
}

#[cfg(test)]
mod tests;
