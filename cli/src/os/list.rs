//! `dstack os list`.

use std::path::{Path, PathBuf};

use dstack_manifest::OsImageHash;
use dstack_os_image::ImageStore;
use serde::Serialize;

use crate::{
    failure::Outcome,
    output::{Output, human_bytes, table},
};

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    version: String,
    path: PathBuf,
    is_dev: bool,
    unlocked: bool,
    os_image_hash: Option<OsImageHash>,
    rootfs_bytes: u64,
    error: Option<String>,
}

/// Lists the OS images of a store.
///
/// Errors: the store cannot be read.
pub(crate) fn list(images: Option<&Path>, output: Output) -> Outcome {
    let store = ImageStore::new(super::store(images)?);
    let mut rows = Vec::new();
    for entry in store.list()? {
        rows.push(match entry.image {
            Ok(image) => Row {
                version: image.metadata().version.clone(),
                path: image.dir().to_owned(),
                is_dev: image.metadata().is_dev,
                unlocked: image.metadata().unlocked,
                os_image_hash: Some(image.os_image_hash()),
                rootfs_bytes: std::fs::metadata(image.rootfs()).map_or(0, |metadata| metadata.len()),
                error: None,
                name: entry.name,
            },
            Err(error) => Row {
                path: store.root().join(&entry.name),
                name: entry.name,
                version: String::new(),
                is_dev: false,
                unlocked: false,
                os_image_hash: None,
                rootfs_bytes: 0,
                error: Some(error.to_string()),
            },
        });
    }
    output.result(&rows, |palette| {
        if rows.is_empty() {
            return format!("There are no OS images in {}. Build one with `dstack os build`.", store.root().display());
        }
        let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
        table(palette, &["NAME", "FLAVOUR", "ROOT", "OS IMAGE HASH"], &cells)
    })
}

fn cells(row: &Row) -> Vec<String> {
    let flavor = match (row.error.is_some(), row.is_dev) {
        (true, _) => "",
        (_, true) => "development",
        (_, false) => "production",
    };
    let flavor = if row.unlocked { format!("{flavor} (unlocked)") } else { flavor.to_owned() };
    let last = match (&row.os_image_hash, &row.error) {
        (Some(hash), _) => hash.to_string(),
        (None, error) => format!("unusable: {}", error.as_deref().unwrap_or_default()),
    };
    vec![row.name.clone(), flavor, human_bytes(row.rootfs_bytes), last]
}
