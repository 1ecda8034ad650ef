//! An image of the cache.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use dstack_manifest::{ImageMetadata, MAX_IMAGE_METADATA_BYTES, MeasurementDocument, OsImageHash};
use dstack_measurement::checksum::{ChecksumFile, TDX_DOCUMENT_NAME};

use super::{ArchiveFault, FetchError, archive};
use crate::image::{CHECKSUM_NAME, METADATA_NAME};

/// Largest `measurement.tdx.cbor` that is read.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// Largest firmware, kernel or initrd.
const MAX_MEASURED_BYTES: u64 = 1 << 30;

/// The files of an image that are measured at launch.
#[derive(Debug, Clone)]
pub struct ImageBytes {
    /// Firmware.
    pub firmware: Vec<u8>,
    /// Kernel.
    pub kernel: Vec<u8>,
    /// Initial RAM disk.
    pub initrd: Vec<u8>,
}

/// A cached image whose every file was checked against its hash. Only [`super::ImageFetcher`] makes one.
#[derive(Debug, Clone)]
pub struct FetchedImage {
    os_image_hash: OsImageHash,
    dir: PathBuf,
    metadata: ImageMetadata,
    checksums: ChecksumFile,
    stamps: Vec<Stamp>,
}

/// Name, inode, size and time of last change of a file: equal stamps, equal content, as far as the kernel of this machine is honest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(String, u64, u64, i64, i64);

impl FetchedImage {
    /// Checks the directory of a cached image.
    ///
    /// Errors: something in it is not what the hash says, or is missing.
    pub(super) fn open(dir: &Path, os_image_hash: &OsImageHash) -> Result<Self, FetchError> {
        let checksums = archive::check(dir, os_image_hash)?;
        let incomplete = |what: String| FetchError::Archive { os_image_hash: *os_image_hash, fault: ArchiveFault::Incomplete { what } };
        if !is_listed(&checksums, METADATA_NAME) {
            return Err(incomplete(format!("its sha256sum.txt does not list {METADATA_NAME}")));
        }
        let bytes = read_listed(dir, &checksums, METADATA_NAME, MAX_IMAGE_METADATA_BYTES)?;
        let metadata: ImageMetadata =
            serde_json::from_slice(&bytes).map_err(|error| incomplete(format!("its {METADATA_NAME} is malformed: {error}")))?;
        for name in [&metadata.bios, &metadata.kernel, &metadata.initrd] {
            if !is_listed(&checksums, name) {
                return Err(incomplete(format!("its sha256sum.txt does not list {name}")));
            }
        }
        let mut names: Vec<&str> = checksums.entries().map(|(name, _)| name).collect();
        names.push(CHECKSUM_NAME);
        let stamps = names.into_iter().map(|name| stamp(dir, name)).collect::<io::Result<_>>().map_err(FetchError::disk(dir))?;
        Ok(Self { os_image_hash: *os_image_hash, dir: dir.to_owned(), metadata, checksums, stamps })
    }

    /// Its identity.
    #[must_use]
    pub fn os_image_hash(&self) -> OsImageHash {
        self.os_image_hash
    }

    /// Its description.
    #[must_use]
    pub fn metadata(&self) -> &ImageMetadata {
        &self.metadata
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether no file was touched since the image was checked.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.stamps.iter().all(|seen| stamp(&self.dir, &seen.0).is_ok_and(|now| now == *seen))
    }

    /// The files that are measured, held to their digests once more.
    ///
    /// Errors: unreadable, or changed.
    pub fn read_measured(&self) -> Result<ImageBytes, FetchError> {
        let read = |name: &str| read_listed(&self.dir, &self.checksums, name, MAX_MEASURED_BYTES);
        let ImageMetadata { bios, kernel, initrd, .. } = &self.metadata;
        Ok(ImageBytes { firmware: read(bios)?, kernel: read(kernel)?, initrd: read(initrd)? })
    }

    /// Its measurement document for TDX with the file that binds it; `None` if the image has none.
    ///
    /// Errors: unreadable.
    pub fn tdx_document(&self) -> Result<Option<MeasurementDocument>, FetchError> {
        if !is_listed(&self.checksums, TDX_DOCUMENT_NAME) {
            return Ok(None);
        }
        let path = self.dir.join(CHECKSUM_NAME);
        let checksum_file = read(&path, MAX_DOCUMENT_BYTES).map_err(FetchError::disk(&path))?;
        let measurement = read_listed(&self.dir, &self.checksums, TDX_DOCUMENT_NAME, MAX_DOCUMENT_BYTES)?;
        Ok(Some(MeasurementDocument { checksum_file, measurement }))
    }
}

/// A file's bytes, if they have the digest that `checksums` lists.
fn read_listed(dir: &Path, checksums: &ChecksumFile, name: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
    let path = dir.join(name);
    let bytes = read(&path, limit).map_err(FetchError::disk(&path))?;
    let fault = |error| FetchError::Archive { os_image_hash: checksums.os_image_hash(), fault: ArchiveFault::Checksum(error) };
    checksums.check_file(name, &bytes).map_err(fault)?;
    Ok(bytes)
}

fn is_listed(checksums: &ChecksumFile, name: &str) -> bool {
    checksums.entries().any(|(listed, _)| listed == name)
}

fn stamp(dir: &Path, name: &str) -> io::Result<Stamp> {
    let metadata = fs::symlink_metadata(dir.join(name))?;
    Ok(Stamp(name.to_owned(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any file of its kind"));
    }
    Ok(bytes)
}
