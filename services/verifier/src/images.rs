//! Registers of OS images from their files, for evidence that carries no measurement document.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use dstack_attestation::{AcpiSource, DocumentReference, ImageReference, LaunchRegisters};
use dstack_manifest::{OsImageHash, VmConfig};
use dstack_measurement::{
    VmShape,
    acpi::{self, AcpiDigests, AcpiProfile},
    tdx::{self, ImageFiles, ImageMeasurement},
};
use dstack_os_image::fetch::FetchedImage;
use sha2::{Digest as _, Sha256};

/// Registers remembered.
const CAPACITY: usize = 256;

/// Registers that were computed, by image, configuration and tables. Computing reads some 40 MB.
#[derive(Default)]
pub(crate) struct Computed {
    known: Mutex<HashMap<[u8; 32], LaunchRegisters>>,
}

impl Computed {
    fn get_or_compute(&self, key: [u8; 32], compute: impl FnOnce() -> Result<LaunchRegisters, String>) -> Result<LaunchRegisters, String> {
        if let Some(registers) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*registers);
        }
        let registers = compute()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CAPACITY {
            known.clear();
        }
        known.insert(key, registers);
        Ok(registers)
    }
}

/// The reference values of one image whose files are at hand, and of every document.
pub(crate) struct FilesReference {
    image: Arc<FetchedImage>,
    computed: Arc<Computed>,
}

impl FilesReference {
    pub(crate) fn new(image: Arc<FetchedImage>, computed: Arc<Computed>) -> Self {
        Self { image, computed }
    }

    fn compute(&self, shape: &VmShape, acpi: &AcpiDigests) -> Result<LaunchRegisters, String> {
        let bytes = self.image.read_measured().map_err(|error| error.to_string())?;
        let cmdline = &self.image.metadata().cmdline;
        let files = ImageFiles { firmware: &bytes.firmware, kernel: &bytes.kernel, initrd: &bytes.initrd, cmdline };
        let registers = tdx::expected_from_files(&files, shape, acpi).map_err(|error| chain(&error))?.registers;
        Ok(LaunchRegisters { mrtd: registers.mrtd, rtmr: [registers.rtmr0, registers.rtmr1, registers.rtmr2] })
    }
}

impl ImageReference for FilesReference {
    fn expected(&self, image: &ImageMeasurement, vm_config: &VmConfig, acpi: AcpiSource) -> Result<LaunchRegisters, String> {
        DocumentReference.expected(image, vm_config, acpi)
    }

    fn expected_by_hash(
        &self,
        os_image_hash: &OsImageHash,
        vm_config: &VmConfig,
        acpi: AcpiSource,
    ) -> Option<Result<LaunchRegisters, String>> {
        if *os_image_hash != self.image.os_image_hash() {
            return None;
        }
        let known = || {
            let shape = VmShape::try_from(vm_config).map_err(|error| chain(&error))?;
            let acpi = match acpi {
                AcpiSource::Log(digests) => digests,
                AcpiSource::SoftwareTee => acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).map_err(|error| chain(&error))?.digests(),
            };
            let config = serde_json::to_vec(vm_config).map_err(|error| error.to_string())?;
            let key = Sha256::new()
                .chain_update(os_image_hash.as_bytes())
                .chain_update(acpi.loader)
                .chain_update(acpi.rsdp)
                .chain_update(acpi.tables)
                .chain_update(config)
                .finalize();
            self.computed.get_or_compute(key.into(), || self.compute(&shape, &acpi))
        };
        Some(known())
    }
}

/// An error with its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
