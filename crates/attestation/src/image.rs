//! From an OS image hash to the registers it demands.
//!
//! `os_image_hash` is the SHA-256 of an image's `sha256sum.txt`. The configuration carries that file and one measurement document it
//! names; both are checked here, so what follows is a statement about this image hash. Whether the *image hash* is a good one is
//! authorization's decision: a host can make up an image, but not one with somebody else's hash.

use dstack_event_log::{Digest384, EventLog};
use dstack_manifest::{OsImageHash, VmConfig};
use dstack_measurement::{
    VmShape,
    acpi::{self, AcpiDigests, AcpiProfile},
    tdx::{self, DocumentError, ImageMeasurement},
};

/// MRTD and RTMR0 to RTMR2 of a TD that has started its kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaunchRegisters {
    /// MRTD.
    pub mrtd: [u8; 48],
    /// RTMR0 to RTMR2.
    pub rtmr: [[u8; 48]; 3],
}

/// Where the digests of the ACPI tables come from. They are part of RTMR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiSource {
    /// The machine model that the software TEE vouches for; computed.
    SoftwareTee,
    /// The event log. RTMR0 proves that these digests were measured, not what the tables are.
    Log(AcpiDigests),
}

/// Computes what an image must measure to.
pub trait ImageReference: Send + Sync {
    /// Registers that `image` (bound to an OS image hash) gives in the VM that `vm_config` describes.
    ///
    /// The error is text for the operator: why the registers cannot be computed.
    fn expected(&self, image: &ImageMeasurement, vm_config: &VmConfig, acpi: AcpiSource) -> Result<LaunchRegisters, String>;

    /// Registers that the image named `os_image_hash` gives where `vm_config` carries no document of it, such as from its files.
    ///
    /// `None` if this source does not have the image. The source answers for the bytes being those the hash names.
    fn expected_by_hash(
        &self,
        _os_image_hash: &OsImageHash,
        _vm_config: &VmConfig,
        _acpi: AcpiSource,
    ) -> Option<Result<LaunchRegisters, String>> {
        None
    }
}

/// Reference values from the measurement document alone: no image file is needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct DocumentReference;

impl ImageReference for DocumentReference {
    fn expected(&self, image: &ImageMeasurement, vm_config: &VmConfig, acpi: AcpiSource) -> Result<LaunchRegisters, String> {
        let shape = VmShape::try_from(vm_config).map_err(|error| error.to_string())?;
        let acpi = match acpi {
            AcpiSource::Log(digests) => digests,
            AcpiSource::SoftwareTee => acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).map_err(|error| error.to_string())?.digests(),
        };
        let registers = tdx::expected(image, &shape, acpi).map_err(|error| error.to_string())?.registers;
        Ok(LaunchRegisters { mrtd: registers.mrtd, rtmr: [registers.rtmr0, registers.rtmr1, registers.rtmr2] })
    }
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
    /// The document does not belong to the image hash, or cannot be read.
    #[error("measurement document of os image {os_image_hash}: {}", chain(fault))]
    Document {
        /// The image it names.
        os_image_hash: OsImageHash,
        /// What is wrong.
        fault: DocumentError,
    },
}

/// The measurement document of `config`, bound to the image hash it names.
pub fn bound_measurement(config: &VmConfig) -> Result<(OsImageHash, ImageMeasurement), ImageBindingError> {
    let os_image_hash = config.os_image_hash.ok_or(ImageBindingError::NoImageHash)?;
    let document = config.tdx_measurement.as_ref().ok_or(ImageBindingError::NoDocument { os_image_hash })?;
    let image = ImageMeasurement::from_bound_document(document, &os_image_hash)
        .map_err(|fault| ImageBindingError::Document { os_image_hash, fault })?;
    Ok((os_image_hash, image))
}

/// The digests of loader, RSDP and tables as the log has them: its three RTMR0 events with the payload `ACPI DATA`.
pub(crate) fn acpi_digests_of(log: &EventLog) -> Option<AcpiDigests> {
    let marked = log.events().iter().filter(|event| event.imr == 0 && event.event_payload == b"ACPI DATA");
    let digests: Vec<Digest384> = marked.filter_map(|event| event.digest.as_slice().try_into().ok()).collect();
    let [loader, rsdp, tables] = digests.try_into().ok()?;
    Some(AcpiDigests { loader, rsdp, tables })
}

/// Whether a known QEMU builds tables with these digests for the VM of `config`; then their content is known.
pub(crate) fn are_known_tables(config: &VmConfig, digests: &AcpiDigests) -> bool {
    VmShape::try_from(config).is_ok_and(|shape| acpi::recognise(&shape, digests).is_some())
}

/// An error with its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
