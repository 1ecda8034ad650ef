//! Reference values of machines that were met before.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use dstack_manifest::{OsImageHash, VmConfig};
use dstack_measurement::{VmShape, tdx::ImageMeasurement};

use crate::{AcpiSource, ImageReference, LaunchRegisters};

/// Machines remembered.
const CAPACITY: usize = 64;

/// Everything the registers of a document depend on.
#[derive(PartialEq, Eq)]
struct Machine {
    image: ImageMeasurement,
    shape: VmShape,
    acpi: AcpiSource,
}

/// Computes the registers of `R` once for each machine: a fleet runs few images in few sizes. At most 64 are remembered, the one met
/// first goes first. `R` must be a function of image, shape and tables alone.
pub struct RememberedReference<R> {
    reference: R,
    known: Mutex<VecDeque<(Machine, LaunchRegisters)>>,
}

impl<R: ImageReference> RememberedReference<R> {
    /// Remembers what `reference` computes.
    #[must_use]
    pub fn new(reference: R) -> Self {
        Self { reference, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, VecDeque<(Machine, LaunchRegisters)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: ImageReference> ImageReference for RememberedReference<R> {
    fn expected(&self, image: &ImageMeasurement, vm_config: &VmConfig, acpi: AcpiSource) -> Result<LaunchRegisters, String> {
        let shape = VmShape::try_from(vm_config).map_err(|error| error.to_string())?;
        let machine = Machine { image: image.clone(), shape, acpi };
        if let Some((_, registers)) = self.known().iter().find(|(known, _)| *known == machine) {
            return Ok(*registers);
        }
        let registers = self.reference.expected(image, vm_config, acpi)?;
        let mut known = self.known();
        if known.len() >= CAPACITY {
            known.pop_front();
        }
        known.push_back((machine, registers));
        Ok(registers)
    }

    fn expected_by_hash(
        &self,
        os_image_hash: &OsImageHash,
        vm_config: &VmConfig,
        acpi: AcpiSource,
    ) -> Option<Result<LaunchRegisters, String>> {
        self.reference.expected_by_hash(os_image_hash, vm_config, acpi)
    }
}

#[cfg(test)]
mod tests;
