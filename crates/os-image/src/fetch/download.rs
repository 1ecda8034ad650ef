//! One download, bounded in bytes and time.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

use dstack_manifest::OsImageHash;
use dstack_rpc::{Client, Endpoint};

use super::{FetchError, FetchLimits};

/// Where the hash belongs in an address.
pub(super) const PLACEHOLDER: &str = "{OS_IMAGE_HASH}";

/// Downloads the archive of `hash` into an unnamed file in `dir`, positioned at its start.
pub(super) async fn download(
    template: &str,
    tls: &Arc<rustls::ClientConfig>,
    hash: &OsImageHash,
    dir: &Path,
    limits: &FetchLimits,
) -> Result<File, FetchError> {
    let url = template.replace(PLACEHOLDER, &hash.to_string());
    let transfer = transfer(&url, tls, hash, dir, limits);
    tokio::time::timeout(limits.timeout, transfer).await.map_err(|_| FetchError::Timeout { url: url.clone(), limit: limits.timeout })?
}

async fn transfer(
    url: &str,
    tls: &Arc<rustls::ClientConfig>,
    hash: &OsImageHash,
    dir: &Path,
    limits: &FetchLimits,
) -> Result<File, FetchError> {
    let endpoint = Endpoint::parse(url).map_err(|error| FetchError::Endpoint(Arc::new(error)))?;
    let path = endpoint.base().to_owned();
    let unreachable = |error| FetchError::Unreachable { url: url.to_owned(), source: Arc::new(error) };
    let client = Client::new(endpoint).with_tls(Arc::clone(tls)).with_timeout(limits.timeout);
    let mut answer = client.stream(&path).await.map_err(unreachable)?;
    match answer.status.as_u16() {
        200 => {}
        404 | 410 => return Err(FetchError::NotPublished { os_image_hash: *hash, url: url.to_owned() }),
        status => return Err(FetchError::Refused { url: url.to_owned(), status }),
    }
    let mut file = tempfile::tempfile_in(dir).map_err(FetchError::disk(dir))?;
    let mut left = limits.compressed_bytes;
    while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
        left = left.checked_sub(chunk.len() as u64).ok_or(FetchError::TooLarge { url: url.to_owned(), limit: limits.compressed_bytes })?;
        // Into the page cache: short enough for the event loop.
        file.write_all(&chunk).map_err(FetchError::disk(dir))?;
    }
    file.seek(SeekFrom::Start(0)).map_err(FetchError::disk(dir))?;
    Ok(file)
}
