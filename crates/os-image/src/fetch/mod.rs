//! OS images by hash: downloaded, held to the hash, kept.
//!
//! The server, the cache's disk and the archive are untrusted. An image is used only if its `sha256sum.txt` has the hash that was asked for
//! and every file it lists has the digest it lists; whatever it does not list is dropped. Downloads are bounded in bytes, files and time;
//! many who ask for one image wait for one download; an image appears in the cache by one rename.

mod archive;
mod cache;
mod download;
mod error;
mod image;

pub use cache::{FetchLimits, ImageFetcher};
pub use error::{ArchiveFault, FetchError};
pub use image::{FetchedImage, ImageBytes};
