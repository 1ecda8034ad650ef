//! What a launch must measure to, with the reasons where that is not known.

use dstack_measurement::{
    BootEvent, Digest384, VmShape,
    acpi::AcpiDigests,
    tdx::{HostTables, LaunchError, OvmfVariant},
};

use super::{image::Material, machine::Tables};
use crate::failure::{Failure, Outcome};

/// Names of the registers, in the order they are shown.
pub(super) const REGISTERS: [&str; 4] = ["MRTD", "RTMR0", "RTMR1", "RTMR2"];

/// The registers before any runtime event.
#[derive(Debug, Clone)]
pub(super) struct Prediction {
    /// MRTD, RTMR0 to RTMR2; `None` where the reason is in `gap`.
    pub(super) registers: [Option<Digest384>; 4],
    /// Why RTMR0 is not known.
    pub(super) gap: Option<String>,
    /// The events; those of RTMR0 are incomplete where it is not known.
    pub(super) events: Vec<BootEvent>,
}

/// What the host's part of RTMR0 is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostPart {
    pub(super) tables: Tables,
    pub(super) ovmf: OvmfVariant,
    pub(super) smbios: Option<Digest384>,
}

/// Registers of a VM of `shape` that boots the image.
///
/// Tables that are not modelled leave RTMR0 open; the others do not depend on them.
pub(super) fn predict(material: &Material, shape: &VmShape, host: HostPart) -> Outcome<Prediction> {
    let acpi = host.tables.digests(shape);
    let smbios = host.smbios.filter(|_| host.ovmf == OvmfVariant::Since202505);
    let mut gap = acpi.as_ref().err().map(ToString::to_string);
    if host.ovmf == OvmfVariant::Since202505 && smbios.is_none() {
        gap.get_or_insert_with(|| {
            "this firmware measures the SMBIOS structures, which name the host's CPU; give their digest with --smbios".to_owned()
        });
    }
    let unknown = AcpiDigests { loader: [0; 48], rsdp: [0; 48], tables: [0; 48] };
    let tables = HostTables { acpi: acpi.unwrap_or(unknown), smbios: smbios.or(Some([0; 48])) };
    let launch = material.launch(shape, tables).map_err(|error| refuse(&error))?;
    let found = launch.registers;
    let rtmr0 = gap.is_none().then_some(found.rtmr0);
    Ok(Prediction { registers: [Some(found.mrtd), rtmr0, Some(found.rtmr1), Some(found.rtmr2)], gap, events: launch.events })
}

fn refuse(error: &LaunchError) -> Failure {
    let cause = std::iter::successors(std::error::Error::source(error), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"));
    let fix = match error {
        LaunchError::UnsupportedMemory { .. } | LaunchError::UnsupportedQemu(_) => "measure the files: leave out --document",
        LaunchError::Image(_) => "fetch or build the image again",
        _ => "choose another shape; see `dstack measure --help`",
    };
    Failure::new("measure/unsupported", cause, fix)
}
