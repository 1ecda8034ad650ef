//! Registers of a TD from the files that are about to be booted.

use std::{fs, path::Path};

use dstack_api::tee_simulator::LaunchTd;
use dstack_event_log::Event;
use dstack_manifest::{ImageMetadata, VmConfig};
use dstack_measurement::{
    VmShape,
    acpi::{self, AcpiProfile},
    tdx::{self, ImageFiles},
};

use crate::{SimulatorError, td::Registers};

const MAX_FILE_BYTES: u64 = 512 << 20;

/// What a launch gives.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) registers: Registers,
    pub(crate) boot_event_log: String,
}

/// Measures the image and the shape that `request` names. Blocks.
pub(crate) fn measure(request: &LaunchTd) -> Result<Launched, SimulatorError> {
    let config: VmConfig = serde_json::from_str(&request.vm_config).map_err(|error| unmeasurable("vm_config", &error))?;
    let shape = VmShape::try_from(&config).map_err(|error| unmeasurable("vm_config", &error))?;
    let directory = Path::new(&request.image_dir);
    let metadata = read(directory, "metadata.json")?;
    let metadata: ImageMetadata = serde_json::from_slice(&metadata).map_err(|error| unmeasurable("metadata.json", &error))?;
    let firmware = read(directory, &metadata.bios)?;
    let kernel = read(directory, &metadata.kernel)?;
    let initrd = read(directory, &metadata.initrd)?;
    let files = ImageFiles { firmware: &firmware, kernel: &kernel, initrd: &initrd, cmdline: &metadata.cmdline };
    let tables = acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).map_err(|error| unmeasurable("the VM's ACPI tables", &error))?;
    let launch = tdx::expected_from_files(&files, &shape, tables.digests()).map_err(|error| unmeasurable("the image", &error))?;
    let expected = launch.registers;
    let events = launch
        .events
        .iter()
        .map(|event| Event { event_payload: event.payload.clone(), ..Event::boot(event.imr, event.event_type, &event.digest, event.name) });
    let events: Vec<Event> = events.collect();
    Ok(Launched {
        registers: Registers { mrtd: expected.mrtd, rtmr: [expected.rtmr0, expected.rtmr1, expected.rtmr2, [0; 48]] },
        boot_event_log: serde_json::to_string(&events).map_err(|error| unmeasurable("the boot event log", &error))?,
    })
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, SimulatorError> {
    let is_plain = !name.is_empty() && !name.contains('/') && name != "..";
    if !is_plain {
        return Err(SimulatorError::Measure { what: format!("{name:?}"), reason: "not a plain file name".to_owned() });
    }
    let path = directory.join(name);
    let length = fs::metadata(&path).map_err(|error| unmeasurable(&path.display().to_string(), &error))?.len();
    if length > MAX_FILE_BYTES {
        return Err(SimulatorError::Measure { what: path.display().to_string(), reason: format!("{length} bytes are too many") });
    }
    fs::read(&path).map_err(|error| unmeasurable(&path.display().to_string(), &error))
}

fn unmeasurable(what: &str, error: &dyn std::error::Error) -> SimulatorError {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let reason = causes.fold(error.to_string(), |text, source| format!("{text}: {source}"));
    SimulatorError::Measure { what: what.to_owned(), reason }
}
