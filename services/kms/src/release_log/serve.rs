//! The log over HTTP, as C2SP tlog-tiles has it: everybody may read it.
//!
//! Tiles are cut from two files when asked for; a full one never changes, so anything between may keep it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, PoisonError},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use dstack_key_hierarchy::{RootKeys, log_key_digest};
use dstack_release_log::{BUNDLE_ENTRIES, Hash, HashReader, LogVerifier, Tile};
use serde::Serialize;

use super::{ReleaseLog, ReleaseLogError, files::HASH_BYTES, writer::Shared};

/// Longer spans of hashes are read one by one.
const MAX_SPAN: u64 = 4096;
/// Level of the highest tile of a tree with 2^48 entries.
const MAX_LEVEL: u8 = 5;
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// How a reader comes from the root of a KMS to the key of its log.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LogKeyDocument {
    pub(super) verifier_key: String,
    k256_pubkey: String,
    /// By the k256 root over [`log_key_digest`].
    signature: String,
}

impl LogKeyDocument {
    pub(super) fn new(verifier: &LogVerifier, keys: &RootKeys) -> Result<Self, ReleaseLogError> {
        let verifier_key = verifier.to_string();
        let signature = keys.k256.sign_digest(&log_key_digest(&verifier_key));
        let signature = signature.map_err(|error| ReleaseLogError::Entry { reason: error.to_string() })?;
        Ok(Self { verifier_key, k256_pubkey: hex::encode(keys.k256.public_key()), signature: hex::encode(signature) })
    }
}

/// Routes below `/log`.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(log: &ReleaseLog) -> Router<S> {
    let key = log.document.clone();
    Router::new()
        .route("/log/checkpoint", get(checkpoint))
        .route("/log/witnessed", get(witnessed))
        .route("/log/tile/{*path}", get(tile))
        .with_state(Arc::clone(&log.shared))
        .route("/log/key", get(move || async { Json(key) }))
}

fn text(body: String) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

async fn checkpoint(State(shared): State<Arc<Shared>>) -> Response {
    text(shared.published.read().unwrap_or_else(PoisonError::into_inner).note.clone())
}

async fn witnessed(State(shared): State<Arc<Shared>>) -> Response {
    let note = shared.published.read().unwrap_or_else(PoisonError::into_inner).witnessed.clone();
    note.map_or_else(|| (StatusCode::NOT_FOUND, "no witness has signed yet\n").into_response(), text)
}

async fn tile(State(shared): State<Arc<Shared>>, Path(path): Path<String>) -> Response {
    let Some(tile) = parse(&path) else { return StatusCode::NOT_FOUND.into_response() };
    let read = tokio::task::spawn_blocking(move || read(&shared, &tile)).await;
    match read {
        Ok(Ok(Some(bytes))) => {
            let mut response = Response::new(Body::from(bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
            response
        }
        Ok(Ok(None)) => StatusCode::NOT_FOUND.into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, path, "the release log cannot be read");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A tile of C2SP's paths, which name no height and call data `entries`. What the library would take for its caller's mistake is
/// refused before: an empty tile, and a level beyond what a log can have.
fn parse(path: &str) -> Option<Tile> {
    let (level, rest) = path.split_once('/').filter(|_| !path.ends_with(".p/0"))?;
    let level = if level == "entries" { "data" } else { level.parse().ok().filter(|level: &u8| *level <= MAX_LEVEL).map(|_| level)? };
    Tile::from_path(&format!("tile/8/{level}/{rest}")).ok()
}

/// The tile's bytes; none if the tree does not reach there.
fn read(shared: &Shared, tile: &Tile) -> io::Result<Option<Vec<u8>>> {
    let (size, range) = {
        let published = shared.published.read().unwrap_or_else(PoisonError::into_inner);
        let offset = |bundle: u64| usize::try_from(bundle).ok().and_then(|bundle| published.bundle_offsets.get(bundle)).copied();
        let end = tile.level_index().checked_add(1).and_then(offset).unwrap_or(published.entries_bytes);
        (published.size, offset(tile.level_index()).map(|start| (start, end)))
    };
    let hashes_of_level = size >> (8 * u32::from(tile.level()));
    let first = tile.level_index().checked_mul(BUNDLE_ENTRIES);
    let is_there = first.and_then(|first| first.checked_add(u64::from(tile.width()))).is_some_and(|end| end <= hashes_of_level);
    if !is_there {
        return Ok(None);
    }
    if tile.is_data() {
        let Some((start, end)) = range else { return Ok(None) };
        return read_entries(&shared.entries, start, end, tile.width()).map(Some);
    }
    tile.read_data(&StoredHashes(&shared.hashes)).map(Some).map_err(io::Error::other)
}

/// The first `width` entries of the bundle at `start`.
fn read_entries(file: &File, start: u64, end: u64, width: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    let mut kept = 0;
    for _ in 0..width {
        let length = bytes.get(kept..).and_then(|rest| rest.first_chunk::<2>()).ok_or(io::ErrorKind::UnexpectedEof)?;
        kept += 2 + usize::from(u16::from_be_bytes(*length));
    }
    bytes.truncate(kept);
    Ok(bytes)
}

/// The stored hashes in their file.
pub(super) struct StoredHashes<'a>(pub(super) &'a File);

impl HashReader for StoredHashes<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let broken = |_| tlog_tiles::Error::IndexesNotInTree;
        let (Some(first), Some(last)) = (indexes.iter().min(), indexes.iter().max()) else { return Ok(Vec::new()) };
        if last - first < MAX_SPAN {
            let mut bytes = vec![0; usize::try_from((last - first + 1) * HASH_BYTES).map_err(|_| tlog_tiles::Error::BadMath)?];
            self.0.read_exact_at(&mut bytes, first * HASH_BYTES).map_err(broken)?;
            let chunks: Vec<[u8; 32]> = bytes.as_chunks().0.to_vec();
            let pick = |index: &u64| usize::try_from(index - first).ok().and_then(|offset| chunks.get(offset)).map(|hash| Hash(*hash));
            return indexes.iter().map(|index| pick(index).ok_or(tlog_tiles::Error::BadMath)).collect();
        }
        let read = |index: &u64| {
            let mut hash = [0; 32];
            self.0.read_exact_at(&mut hash, index * HASH_BYTES).map_err(broken)?;
            Ok(Hash(hash))
        };
        indexes.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_tiles_are_passed_over() {
        for path in [
            "",
            "0",
            "0/x",
            "0/000.p/0",
            "0/000.p/256",
            "data/000",
            "6/000",
            "63/000",
            "0/1",
            "entries",
            "entries/../0",
            "0/000/",
            "255/000",
        ] {
            assert!(parse(path).is_none(), "{path}");
        }
        for path in ["0/000", "0/000.p/1", "5/x001/000", "entries/000", "entries/x001/234.p/9"] {
            assert!(parse(path).is_some(), "{path}");
        }
    }
}
