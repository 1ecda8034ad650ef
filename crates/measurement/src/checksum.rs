//! `sha256sum.txt`: the file whose hash names an OS image, and the lines that bind its parts.

#![deny(clippy::indexing_slicing)]

use dstack_manifest::OsImageHash;
use sha2::{Digest as _, Sha256};

/// Name of the TDX measurement document inside an image.
pub const TDX_DOCUMENT_NAME: &str = "measurement.tdx.cbor";

/// Name of the SEV-SNP measurement document inside an image.
pub const SNP_DOCUMENT_NAME: &str = "measurement.snp.cbor";

/// Largest checksum file that is read.
pub const MAX_CHECKSUM_FILE_LEN: usize = 64 << 10;

/// Why a checksum file does not bind what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChecksumError {
    /// Larger than [`MAX_CHECKSUM_FILE_LEN`].
    #[error("checksum file of {len} bytes is larger than {MAX_CHECKSUM_FILE_LEN}")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// A line is not `<64 lower-case hex digits><two spaces><name>`.
    #[error("line {line} of the checksum file is not a SHA-256 and a plain file name")]
    BadLine {
        /// Number of the line, from 1.
        line: usize,
    },
    /// Two lines name the same file.
    #[error("checksum file names {name} twice")]
    Duplicate {
        /// The file.
        name: String,
    },
    /// No line names the file.
    #[error("checksum file does not name {name}")]
    Missing {
        /// The file.
        name: String,
    },
    /// The line has another digest than the file.
    #[error("{name} has SHA-256 {actual}, the checksum file says {listed}")]
    Mismatch {
        /// The file.
        name: String,
        /// Digest of the bytes, hex.
        actual: String,
        /// Digest in the line, hex.
        listed: String,
    },
    /// The checksum file is not the one that the image hash names.
    #[error("checksum file has SHA-256 {actual}, the OS image hash is {expected}")]
    OtherImage {
        /// Digest of the file, hex.
        actual: String,
        /// The OS image hash, hex.
        expected: String,
    },
}

/// Identity of an OS image: SHA-256 of the bytes of its `sha256sum.txt`.
#[must_use]
pub fn os_image_hash(checksum_file: &[u8]) -> OsImageHash {
    OsImageHash::new(Sha256::digest(checksum_file).into())
}

/// The line of `sha256sum.txt` for a file `name` of content `bytes`, with its newline.
#[must_use]
pub fn binding_line(name: &str, bytes: &[u8]) -> String {
    format!("{}  {name}\n", hex::encode(Sha256::digest(bytes)))
}

/// A parsed `sha256sum.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumFile {
    entries: Vec<(String, [u8; 32])>,
    hash: OsImageHash,
}

impl ChecksumFile {
    /// Reads the bytes of a `sha256sum.txt`, untrusted.
    ///
    /// # Errors
    /// [`ChecksumError`]: too large, a malformed line, a name that is not a plain file name, or a name listed twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChecksumError> {
        if bytes.len() > MAX_CHECKSUM_FILE_LEN {
            return Err(ChecksumError::TooLarge { len: bytes.len() });
        }
        let mut entries: Vec<(String, [u8; 32])> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let (name, digest) = parse_line(line).ok_or(ChecksumError::BadLine { line: index + 1 })?;
            if !names.insert(name.clone()) {
                return Err(ChecksumError::Duplicate { name });
            }
            entries.push((name, digest));
        }
        Ok(Self { entries, hash: os_image_hash(bytes) })
    }

    /// The file names with their SHA-256, in file order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.entries.iter().map(|(name, digest)| (name.as_str(), digest))
    }

    /// Identity of the image this file describes.
    #[must_use]
    pub fn os_image_hash(&self) -> OsImageHash {
        self.hash
    }

    /// Checks that this is the checksum file of image `expected`.
    ///
    /// # Errors
    /// [`ChecksumError::OtherImage`].
    pub fn check_image(&self, expected: &OsImageHash) -> Result<(), ChecksumError> {
        if self.hash == *expected {
            return Ok(());
        }
        Err(ChecksumError::OtherImage { actual: hex::encode(self.hash.as_bytes()), expected: hex::encode(expected.as_bytes()) })
    }

    /// Checks that the file `name` with content `bytes` is the one listed.
    ///
    /// # Errors
    /// [`ChecksumError::Missing`], [`ChecksumError::Mismatch`].
    pub fn check_file(&self, name: &str, bytes: &[u8]) -> Result<(), ChecksumError> {
        let Some((_, listed)) = self.entries.iter().find(|(listed, _)| listed == name) else {
            return Err(ChecksumError::Missing { name: name.to_owned() });
        };
        let actual: [u8; 32] = Sha256::digest(bytes).into();
        if actual == *listed {
            return Ok(());
        }
        Err(ChecksumError::Mismatch { name: name.to_owned(), actual: hex::encode(actual), listed: hex::encode(listed) })
    }
}

fn parse_line(line: &[u8]) -> Option<(String, [u8; 32])> {
    let (digest, rest) = line.split_at_checked(64)?;
    if digest.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let digest: [u8; 32] = hex::decode(digest).ok()?.try_into().ok()?;
    let name = rest.strip_prefix(b"  ")?;
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-+".contains(byte);
    let starts_plain = name.first().is_some_and(|byte| byte.is_ascii_alphanumeric());
    (starts_plain && name.len() <= 255 && name.iter().all(is_plain)).then(|| (String::from_utf8_lossy(name).into_owned(), digest))
}
