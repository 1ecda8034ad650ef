//! What the measurement documents of all platforms have in common: one version, one CBOR encoding, and a line in the checksum file
//! that names the image.

use dstack_manifest::OsImageHash;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checksum::{ChecksumError, ChecksumFile};

/// Oldest version that is read.
pub(crate) const VERSION: u64 = 3;

/// Why bytes are not a measurement document, or not this image's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentFormatError {
    /// Longer than any document of its kind.
    #[error("measurement document of {len} bytes is larger than {limit}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The longest that is read.
        limit: usize,
    },
    /// Not the CBOR structure of this version.
    #[error("measurement document is malformed: {0}")]
    Malformed(String),
    /// Another version.
    #[error("measurement document has version {0}, which this program does not read")]
    UnsupportedVersion(u64),
    /// The right structure, but not the one encoding of it.
    #[error("measurement document is not in its deterministic encoding")]
    NotDeterministic,
    /// The document is not the image's.
    #[error("measurement document is not bound to the OS image")]
    NotBound(#[from] ChecksumError),
}

/// Only the version, to tell another version from garbage.
#[derive(Deserialize)]
struct WireVersion {
    version: u64,
}

/// Reads CBOR of at most `limit` bytes, up to version `newest`. Whether it is the one encoding, [`check_encoding`] tells.
pub(crate) fn read<W: DeserializeOwned>(bytes: &[u8], limit: usize, newest: u64) -> Result<W, DocumentFormatError> {
    if bytes.len() > limit {
        return Err(DocumentFormatError::TooLarge { len: bytes.len(), limit });
    }
    if let Ok(WireVersion { version }) = ciborium::from_reader(bytes)
        && !(VERSION..=newest).contains(&version)
    {
        return Err(DocumentFormatError::UnsupportedVersion(version));
    }
    ciborium::from_reader(bytes).map_err(|error| DocumentFormatError::Malformed(error.to_string()))
}

/// Checks that `bytes` are `canonical`, what their content is written as.
pub(crate) fn check_encoding(bytes: &[u8], canonical: &[u8]) -> Result<(), DocumentFormatError> {
    if bytes == canonical { Ok(()) } else { Err(DocumentFormatError::NotDeterministic) }
}

/// The CBOR of a plain struct.
pub(crate) fn write<W: Serialize>(wire: &W) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing plain structs to memory has no way to go wrong.
    let written = ciborium::into_writer(wire, &mut bytes);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes
}

/// Checks that `document` is the file `name` of image `os_image_hash`: the checksum file has that hash and lists it.
pub(crate) fn check_bound(
    checksum_file: &[u8],
    name: &str,
    document: &[u8],
    os_image_hash: &OsImageHash,
) -> Result<(), DocumentFormatError> {
    let checksums = ChecksumFile::parse(checksum_file)?;
    checksums.check_image(os_image_hash)?;
    Ok(checksums.check_file(name, document)?)
}
