//! OS images: verified before use, and again whenever a file of theirs changed.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use dstack_os_image::{Image, ImageError, ImageStore, verify};
use sha2::{Digest as _, Sha256};

use crate::{VmmError, db::Database};

/// Loads an image and makes sure that it is intact. Reading it takes a while the first time, so this runs on a thread
/// for blocking work.
///
/// Errors: unknown, unreadable or tampered with.
pub(crate) async fn load_verified(store: &ImageStore, database: &Arc<Database>, name: &str) -> Result<Image, VmmError> {
    let (store, database, name) = (store.clone(), Arc::clone(database), name.to_owned());
    let task = tokio::task::spawn_blocking(move || {
        let image = store.load(&name)?;
        let before = fingerprint(image.dir())?;
        let key = image.dir().display().to_string();
        if database.verified_image(&key)?.as_deref() == Some(before.as_str()) {
            return Ok(image);
        }
        let verified = verify(&image)?;
        let image = verified.image().clone();
        // Only if nothing was changed while we read.
        if fingerprint(image.dir())? == before {
            database.set_verified_image(&key, &before)?;
        }
        tracing::info!(image = name, os_image_hash = %image.os_image_hash(), "image verified");
        Ok(image)
    });
    task.await.map_err(|error| VmmError::Internal(format!("image check: {error}")))?
}

/// Names, sizes, inodes and change times of all files; the kernel sets change times, a writer cannot choose them.
fn fingerprint(dir: &Path) -> Result<String, ImageError> {
    let failed = |source| ImageError::Read { path: dir.to_owned(), source };
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let meta = entry.metadata().map_err(failed)?;
        let name = entry.file_name();
        lines.push(format!("{name:?} {} {} {} {} {}\n", meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()));
    }
    lines.sort();
    Ok(hex::encode(Sha256::digest(lines.concat())))
}
