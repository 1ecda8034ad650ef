//! One image directory.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_manifest::{Digest32, ImageMetadata, MAX_IMAGE_METADATA_BYTES, MeasurementDocument, OsImageHash};
use dstack_measurement::checksum::{ChecksumError, ChecksumFile, MAX_CHECKSUM_FILE_LEN, TDX_DOCUMENT_NAME};

/// Describes the image.
pub const METADATA_NAME: &str = "metadata.json";
/// SHA-256 of everything that is measured.
pub const CHECKSUM_NAME: &str = "sha256sum.txt";
/// SHA-256 of [`CHECKSUM_NAME`], hex.
pub const DIGEST_NAME: &str = "digest.txt";

/// Largest `measurement.*.cbor` that is read.
const MAX_MEASUREMENT_BYTES: u64 = 1 << 20;

/// Why an image directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no such image.
    #[error("image {name} is not in {}", store.display())]
    NotFound {
        /// Name asked for.
        name: String,
        /// The store's folder.
        store: PathBuf,
    },
    /// The name could leave the store.
    #[error("image name {name:?} may only have letters, digits and `_-.`, at most 64 of them")]
    BadName {
        /// Name asked for.
        name: String,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `metadata.json` or `sha256sum.txt` are not what they should be.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file name in the metadata leads out of the image directory, or is not a plain file.
    #[error("{} of image {image} is not a plain file of its directory", file)]
    ForeignFile {
        /// The image.
        image: String,
        /// Name in the metadata.
        file: String,
    },
    /// A file is not the one that was built.
    #[error("image {image} was changed: {what}")]
    Tampered {
        /// The image.
        image: String,
        /// What does not match.
        what: String,
    },
}

impl UserFacing for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "image/not-found",
            Self::BadName { .. } => "image/bad-name",
            Self::Read { .. } => "image/unreadable",
            Self::Malformed { .. } => "image/malformed",
            Self::ForeignFile { .. } => "image/foreign-file",
            Self::Tampered { .. } => "image/tampered",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NotFound { .. } => "list the images with `dstack os list`, or make one with `dstack os build`".to_owned(),
            Self::BadName { .. } => "use a name that `dstack os list` shows".to_owned(),
            Self::Read { path, .. } => {
                format!("check that {} exists and that this user may read it, or build the image again", path.display())
            }
            Self::Malformed { .. } | Self::ForeignFile { .. } | Self::Tampered { .. } => {
                "delete the image and fetch or build it again with `dstack os build`; do not boot it".to_owned()
            }
        }
    }
}

/// An image directory whose metadata was read. Its files are not verified; see [`crate::verify()`].
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
    name: String,
    metadata: ImageMetadata,
    checksum_file: Vec<u8>,
    checksums: ChecksumFile,
    verity_root: Digest32,
    rootfs_bytes: u64,
}

impl Image {
    /// Reads metadata and checksums of the image in `dir`. Cheap: no large file is read.
    ///
    /// # Errors
    /// [`ImageError`]: a file is missing, malformed, or lies outside `dir`.
    pub fn load(dir: &Path) -> Result<Self, ImageError> {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let metadata_path = dir.join(METADATA_NAME);
        let metadata: ImageMetadata = serde_json::from_slice(&read_capped(&metadata_path, MAX_IMAGE_METADATA_BYTES)?)
            .map_err(|error| ImageError::Malformed { path: metadata_path.clone(), reason: error.to_string() })?;
        let checksum_path = dir.join(CHECKSUM_NAME);
        let checksum_file = read_capped(&checksum_path, MAX_CHECKSUM_FILE_LEN as u64)?;
        let checksums = ChecksumFile::parse(&checksum_file)
            .map_err(|error| ImageError::Malformed { path: checksum_path, reason: error.to_string() })?;
        let malformed = |reason: &str| ImageError::Malformed { path: metadata_path.clone(), reason: reason.to_owned() };
        let verity_root = cmdline_value(&metadata.cmdline, "dstack.rootfs_hash")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| malformed("its command line has no dstack.rootfs_hash"))?;
        let rootfs_bytes = cmdline_value(&metadata.cmdline, "dstack.rootfs_size")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| malformed("its command line has no dstack.rootfs_size"))?;
        let image = Self { dir: dir.to_owned(), name, metadata, checksum_file, checksums, verity_root, rootfs_bytes };
        for file in image.files() {
            image.check_plain(file)?;
        }
        Ok(image)
    }

    /// Name of its directory, such as `dstack-dev-0.7.0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Content of `metadata.json`.
    #[must_use]
    pub fn metadata(&self) -> &ImageMetadata {
        &self.metadata
    }

    /// Identity of the image, computed from `sha256sum.txt`.
    #[must_use]
    pub fn os_image_hash(&self) -> OsImageHash {
        self.checksums.os_image_hash()
    }

    /// The parsed `sha256sum.txt`.
    #[must_use]
    pub fn checksums(&self) -> &ChecksumFile {
        &self.checksums
    }

    /// Bytes of `sha256sum.txt`.
    #[must_use]
    pub fn checksum_file(&self) -> &[u8] {
        &self.checksum_file
    }

    /// dm-verity root of the root file system, from the command line.
    #[must_use]
    pub fn verity_root(&self) -> Digest32 {
        self.verity_root
    }

    /// Where the verity tree starts in [`Self::rootfs`].
    #[must_use]
    pub fn rootfs_bytes(&self) -> u64 {
        self.rootfs_bytes
    }

    /// Path of the firmware.
    #[must_use]
    pub fn firmware(&self) -> PathBuf {
        self.dir.join(&self.metadata.bios)
    }

    /// Path of the kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.metadata.kernel)
    }

    /// Path of the initrd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join(&self.metadata.initrd)
    }

    /// Path of the root file system with its verity tree.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(&self.metadata.rootfs)
    }

    /// The kernel command line.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        &self.metadata.cmdline
    }

    /// What `vm_config` carries, so that a verifier can tell the launch measurement of this image. `None`: the image
    /// has no TDX document.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Tampered`]: the document is not the one listed in `sha256sum.txt`.
    pub fn tdx_measurement(&self) -> Result<Option<MeasurementDocument>, ImageError> {
        let path = self.dir.join(TDX_DOCUMENT_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let measurement = read_capped(&path, MAX_MEASUREMENT_BYTES)?;
        self.checksums.check_file(TDX_DOCUMENT_NAME, &measurement).map_err(|error| self.tampered(&error))?;
        Ok(Some(MeasurementDocument { checksum_file: self.checksum_file.clone(), measurement }))
    }

    pub(crate) fn tampered(&self, error: &ChecksumError) -> ImageError {
        ImageError::Tampered { image: self.name.clone(), what: error.to_string() }
    }

    /// Names of the files that a VM is started from.
    fn files(&self) -> impl Iterator<Item = &str> {
        let metadata = &self.metadata;
        [&metadata.bios, &metadata.kernel, &metadata.initrd, &metadata.rootfs].into_iter().chain(&metadata.bios_sev).map(String::as_str)
    }

    fn check_plain(&self, file: &str) -> Result<(), ImageError> {
        let foreign = || ImageError::ForeignFile { image: self.name.clone(), file: file.to_owned() };
        let is_plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', '\0', ',']);
        if !is_plain {
            return Err(foreign());
        }
        let path = self.dir.join(file);
        let meta = fs::symlink_metadata(&path).map_err(|source| ImageError::Read { path, source })?;
        if meta.is_file() { Ok(()) } else { Err(foreign()) }
    }
}

/// Reads at most `cap` bytes; more is an error.
pub(crate) fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(cap + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > cap {
        return Err(ImageError::Malformed { path: path.to_owned(), reason: format!("it is larger than {cap} bytes") });
    }
    Ok(bytes)
}

fn cmdline_value<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
