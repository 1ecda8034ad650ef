//! From an OS image hash to the registers it demands.
//!
//! `os_image_hash` is the SHA-256 of an image's `sha256sum.txt`. The configuration carries that file and one measurement document it
//! names; both are checked here, so what follows is a statement about this image hash. Whether the *image hash* is a good one is
//! authorization's decision: a host can make up an image, but not one with somebody else's hash.

use dstack_manifest::{OsImageHash, VmConfig};
use sha2::{Digest as _, Sha256};

const MEASUREMENT_NAME: &str = "measurement.tdx.cbor";
const MAX_CHECKSUM_FILE_BYTES: usize = 64 << 10;

/// MRTD and RTMR0 to RTMR2 of a TD that has started its kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaunchRegisters {
    /// MRTD.
    pub mrtd: [u8; 48],
    /// RTMR0 to RTMR2.
    pub rtmr: [[u8; 48]; 3],
}

/// Computes what an image must measure to. Implemented by `dstack-measurement`'s adapter; tests bring their own.
pub trait ImageReference: Send + Sync {
    /// Registers that the image described by `measurement` (a bound `measurement.tdx.cbor`) gives in a VM of shape `vm_config`.
    ///
    /// Several candidates are allowed where the configuration leaves the firmware's loading order open. The error is text for the
    /// operator: why the registers cannot be computed.
    fn expected(&self, measurement: &[u8], vm_config: &VmConfig) -> Result<Vec<LaunchRegisters>, String>;
}

/// Why a configuration does not name its image properly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageBindingError {
    /// No `os_image_hash`.
    #[error("vm_config names no OS image")]
    NoImageHash,
    /// No measurement document.
    #[error("vm_config carries no measurement document for os image {os_image_hash}")]
    NoDocument {
        /// The image it names.
        os_image_hash: OsImageHash,
    },
    /// The checksum file is another image's.
    #[error("checksum file has SHA-256 {got}, os_image_hash is {os_image_hash}")]
    ChecksumFile {
        /// The image named.
        os_image_hash: OsImageHash,
        /// Hash of the file that came with it.
        got: OsImageHash,
    },
    /// The checksum file is not a list of `<hash>  <name>` lines with each name once.
    #[error("checksum file is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// The measurement document is not the one the checksum file names.
    #[error("measurement document does not have the checksum that the image's checksum file gives for {MEASUREMENT_NAME}")]
    Document,
}

/// The measurement document of `config`, bound to the image hash it names.
pub fn bound_measurement(config: &VmConfig) -> Result<(OsImageHash, &[u8]), ImageBindingError> {
    let os_image_hash = config.os_image_hash.ok_or(ImageBindingError::NoImageHash)?;
    let document = config.tdx_measurement.as_ref().ok_or(ImageBindingError::NoDocument { os_image_hash })?;
    if document.checksum_file.len() > MAX_CHECKSUM_FILE_BYTES {
        return Err(ImageBindingError::Malformed { reason: "longer than 64 KiB" });
    }
    let got = OsImageHash::new(Sha256::digest(&document.checksum_file).into());
    if got != os_image_hash {
        return Err(ImageBindingError::ChecksumFile { os_image_hash, got });
    }
    let expected = entry(&document.checksum_file)?;
    if Sha256::digest(&document.measurement).as_slice() != expected {
        return Err(ImageBindingError::Document);
    }
    Ok((os_image_hash, &document.measurement))
}

fn entry(checksum_file: &[u8]) -> Result<[u8; 32], ImageBindingError> {
    let malformed = |reason| ImageBindingError::Malformed { reason };
    let text = std::str::from_utf8(checksum_file).map_err(|_| malformed("not UTF-8"))?;
    let mut found = None;
    for line in text.lines() {
        let (digest, name) = line.split_once("  ").ok_or(malformed("a line is not a hash, two spaces and a name"))?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).map_err(|_| malformed("a hash is not 64 hex digits"))?;
        if name == MEASUREMENT_NAME && found.replace(bytes).is_some() {
            return Err(malformed("measurement.tdx.cbor is named twice"));
        }
    }
    found.ok_or(malformed("measurement.tdx.cbor is not named"))
}
