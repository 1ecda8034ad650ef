//! Measurement documents of OS images for clouds whose TPM tells the boot: what an image must measure to there.
//!
//! Like the documents for TDX and SEV-SNP they count because the image's checksum file names them, whose hash is the image's.

use dstack_manifest::{MeasurementDocument, OsImageHash};
use dstack_measurement::checksum::{ChecksumError, ChecksumFile};

use crate::{
    CborError,
    cbor::{self, Map, bytes_of, unsigned},
};

const GCP_DOCUMENT: &str = "measurement.gcp.cbor";
const AWS_DOCUMENT: &str = "measurement.aws.cbor";
const GCP_VERSION: u64 = 1;

/// Why a document says nothing about an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloudImageError {
    /// It does not belong to the image.
    #[error(transparent)]
    NotBound(#[from] ChecksumError),
    /// It cannot be read.
    #[error("measurement document: {0}")]
    Document(#[from] CborError),
}

/// Authenticode SHA-256 of the image's unified kernel, as Google's firmware measures it into PCR 2.
///
/// `document`: untrusted, `vm_config.gcp_measurement`. `os_image_hash`: the image that is asked about.
///
/// # Errors
/// [`CloudImageError`].
pub fn gcp_uki_authenticode(document: &MeasurementDocument, os_image_hash: &OsImageHash) -> Result<[u8; 32], CloudImageError> {
    let mut map = bound_map(document, GCP_DOCUMENT, os_image_hash)?;
    map.need("version", "version", "1", |value| unsigned(value).filter(|version| *version == GCP_VERSION))?;
    digest(&mut map, "uki_auth")
}

/// `SHA-256(PCR4 || PCR7 || PCR12)` of an AWS instance that booted the image.
///
/// `document`: untrusted, `vm_config.aws_measurement`. `os_image_hash`: the image that is asked about.
///
/// # Errors
/// [`CloudImageError`].
pub fn aws_boot_pcr_digest(document: &MeasurementDocument, os_image_hash: &OsImageHash) -> Result<[u8; 32], CloudImageError> {
    digest(&mut bound_map(document, AWS_DOCUMENT, os_image_hash)?, "boot_pcr_digest")
}

fn bound_map(document: &MeasurementDocument, name: &str, os_image_hash: &OsImageHash) -> Result<Map, CloudImageError> {
    let checksums = ChecksumFile::parse(&document.checksum_file)?;
    checksums.check_image(os_image_hash)?;
    checksums.check_file(name, &document.measurement)?;
    Ok(Map::new(cbor::parse(&document.measurement)?)?)
}

fn digest(map: &mut Map, field: &'static str) -> Result<[u8; 32], CloudImageError> {
    let bytes = map.need(field, field, "32 bytes", bytes_of(32..=32))?;
    Ok(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default()))
}
