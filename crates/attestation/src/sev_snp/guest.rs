//! What a report says about a dstack VM.
//!
//! There is no register that grows: identity is what the host bound to the launch (HOST_DATA), and the runtime events of such a guest
//! are covered by nothing but its own word. Launch digest and HOST_DATA together are the VM.

use dstack_manifest::{MrConfigDocument, MrConfigError, OsImageHash, SnpMeasurementDocument, VmConfig, mr_config_hash_v3};
use dstack_measurement::snp::{GuestFeatures, SnpDocumentError, SnpImageMeasurement, SnpLaunchError, SnpShape};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::SnpFields;

/// Most vCPUs that are tried when a mismatch is explained.
const EXPLAINED_VCPUS: u32 = 128;

/// A property of a genuine guest that makes its evidence worthless to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// The host can read and write the guest.
    #[error("the guest's policy allows debugging")]
    Debug,
    /// A migration agent can move the guest.
    #[error("the guest's policy allows a migration agent")]
    MigrationAgent,
    /// A less privileged part of the guest asked for the report.
    #[error("the report was asked for at privilege level {vmpl}, not 0")]
    Vmpl {
        /// The level.
        vmpl: u32,
    },
    /// The policy has bits that this program does not know.
    #[error("the guest's policy has unknown bits {bits:#x}")]
    UnknownPolicy {
        /// The bits.
        bits: u64,
    },
}

/// Checks what every user of a dstack VM relies on: no debugging, no migration agent, report from the highest privilege level.
///
/// # Errors
/// [`GuestFault`].
pub fn check_guest(fields: &SnpFields) -> Result<(), GuestFault> {
    let policy = fields.policy;
    if policy.allows_debug() {
        return Err(GuestFault::Debug);
    }
    if policy.allows_migration_agent() {
        return Err(GuestFault::MigrationAgent);
    }
    if fields.vmpl != 0 {
        return Err(GuestFault::Vmpl { vmpl: fields.vmpl });
    }
    match policy.unknown_bits() {
        0 => Ok(()),
        bits => Err(GuestFault::UnknownPolicy { bits }),
    }
}

/// HOST_DATA that does not stand for the document that came with the report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostDataError {
    /// The host bound nothing.
    #[error("the host bound no mr_config document to the launch")]
    NotSet,
    /// Another document was bound.
    #[error("HOST_DATA is {got}, the mr_config document gives {expected}")]
    Differs {
        /// Hash of the document, hex.
        expected: String,
        /// HOST_DATA, hex.
        got: String,
    },
    /// The document that was bound cannot be read.
    #[error(transparent)]
    Document(#[from] MrConfigError),
}

/// The identity that the VM was launched for.
///
/// `mr_config`: text of the document, untrusted; its bytes are hashed as they are.
///
/// # Errors
/// [`HostDataError`].
pub fn check_host_data(fields: &SnpFields, mr_config: &str) -> Result<MrConfigDocument, HostDataError> {
    if fields.host_data == [0; 32] {
        return Err(HostDataError::NotSet);
    }
    let expected = mr_config_hash_v3(mr_config);
    if expected != fields.host_data {
        return Err(HostDataError::Differs { expected: hex::encode(expected), got: hex::encode(fields.host_data) });
    }
    Ok(MrConfigDocument::parse(mr_config)?)
}

/// Why MEASUREMENT is not shown to be that of an OS image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchMismatch {
    /// No `os_image_hash`.
    #[error("vm_config names no OS image")]
    NoImageHash,
    /// No measurement document.
    #[error("vm_config carries no SEV-SNP measurement document for os image {os_image_hash}")]
    NoDocument {
        /// The image it names.
        os_image_hash: OsImageHash,
    },
    /// Measurement material as guests had it before release 0.6: nothing binds it to the image hash.
    #[error("vm_config carries measurement material that nothing binds to os image {os_image_hash}")]
    Unbound {
        /// The image it names.
        os_image_hash: OsImageHash,
    },
    /// `sev_snp_measurement` is not JSON of the expected form.
    #[error("sev_snp_measurement is malformed: {reason}")]
    Json {
        /// What the parser met.
        reason: String,
    },
    /// The document does not belong to the image hash, or cannot be read.
    #[error("measurement document of os image {os_image_hash}")]
    Document {
        /// The image it names.
        os_image_hash: OsImageHash,
        /// What is wrong.
        #[source]
        fault: SnpDocumentError,
    },
    /// The host chose features that may weaken the guest.
    #[error("guest features {bits:#x} may weaken the guest")]
    GuestFeatures {
        /// All features.
        bits: u64,
    },
    /// The shape cannot be measured.
    #[error("a VM of that shape")]
    Shape(#[from] SnpLaunchError),
    /// The VM did not boot that image in that shape.
    #[error("MEASUREMENT is {got}, os image {os_image_hash} gives {expected}{}", explain(found.as_ref()))]
    Differs {
        /// The image named.
        os_image_hash: OsImageHash,
        /// Digest of the image in the shape named, hex.
        expected: String,
        /// MEASUREMENT, hex.
        got: String,
        /// The shape in which the image would give MEASUREMENT.
        found: Option<SnpShape>,
    },
}

impl LaunchMismatch {
    /// There is nothing to compare with, rather than something that differs: a caveat for whoever demands no image.
    #[must_use]
    pub const fn lacks_material(&self) -> bool {
        matches!(self, Self::NoImageHash | Self::NoDocument { .. } | Self::Unbound { .. })
    }
}

fn explain(found: Option<&SnpShape>) -> String {
    found.map_or_else(String::new, |shape| {
        let features = if shape.guest_features == GuestFeatures::SNP { "" } else { " with debug swap" };
        format!("; it is the same image with {} vCPUs of {}{features}", shape.vcpus, shape.cpu.name().unwrap_or("another model"))
    })
}

/// An OS image that MEASUREMENT proves, and the shape it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchProof {
    /// The image.
    pub os_image_hash: OsImageHash,
    /// vCPUs, CPU model and features.
    pub shape: SnpShape,
}

/// What tells the forms of `sev_snp_measurement` apart.
#[derive(Deserialize)]
struct Parts {
    checksum_file: Option<serde::de::IgnoredAny>,
    base_cmdline: Option<serde::de::IgnoredAny>,
}

/// Checks that MEASUREMENT is what the image named in `config` gives.
///
/// `config`: from the host, untrusted. What is proven is the image hash; whether the image is a good one is authorization's decision.
///
/// # Errors
/// [`LaunchMismatch`].
pub fn check_launch(fields: &SnpFields, config: &VmConfig) -> Result<LaunchProof, LaunchMismatch> {
    let os_image_hash = config.os_image_hash.ok_or(LaunchMismatch::NoImageHash)?;
    let text = config.sev_snp_measurement.as_deref().ok_or(LaunchMismatch::NoDocument { os_image_hash })?;
    let malformed = |error: serde_json::Error| LaunchMismatch::Json { reason: error.to_string() };
    let parts: Parts = serde_json::from_str(text).map_err(malformed)?;
    if parts.checksum_file.is_none() && parts.base_cmdline.is_some() {
        return Err(LaunchMismatch::Unbound { os_image_hash });
    }
    let document: SnpMeasurementDocument = serde_json::from_str(text).map_err(malformed)?;
    let (image, shape) = SnpImageMeasurement::from_bound_document(&document, &os_image_hash)
        .map_err(|fault| LaunchMismatch::Document { os_image_hash, fault })?;
    if shape.guest_features.weakens_guest() {
        return Err(LaunchMismatch::GuestFeatures { bits: shape.guest_features.bits() });
    }
    let expected = image.launch_digest(&shape)?;
    if expected == fields.measurement {
        return Ok(LaunchProof { os_image_hash, shape });
    }
    Err(LaunchMismatch::Differs {
        os_image_hash,
        expected: hex::encode(expected),
        got: hex::encode(fields.measurement),
        found: image.find_shape(&fields.measurement, EXPLAINED_VCPUS),
    })
}

/// `SHA-256(MEASUREMENT)`.
#[must_use]
pub fn mr_system(fields: &SnpFields) -> [u8; 32] {
    Sha256::digest(fields.measurement).into()
}

/// `SHA-256(MEASUREMENT || HOST_DATA)`.
#[must_use]
pub fn mr_aggregated(fields: &SnpFields) -> [u8; 32] {
    Sha256::new().chain_update(fields.measurement).chain_update(fields.host_data).finalize().into()
}

/// `SHA-256(CHIP_ID)`: the same for all guests of one machine. `None` where the host masks the chip.
#[must_use]
pub fn device_id(fields: &SnpFields) -> Option<[u8; 32]> {
    (!fields.is_chip_masked()).then(|| Sha256::digest(fields.chip_id).into())
}
