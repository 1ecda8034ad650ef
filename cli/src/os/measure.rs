//! `dstack measure`.

use std::path::Path;

use dstack_manifest::OsImageHash;
use dstack_measurement::{
    BootEvent, VmShape,
    acpi::{self, AcpiProfile},
    tdx::{self, ImageMeasurement},
};
use dstack_os_image::{Image, ImageStore};
use serde::Serialize;

use crate::{
    args::MeasureArgs,
    failure::{Failure, Outcome},
    output::{Output, Tone, fields},
    size::{BareUnit, parse_size},
};

#[derive(Debug, Serialize)]
struct Measured {
    image: String,
    os_image_hash: OsImageHash,
    vcpu: u32,
    memory_bytes: u64,
    qemu: String,
    mrtd: String,
    rtmr0: String,
    rtmr1: String,
    rtmr2: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<EventRow>,
}

#[derive(Debug, Serialize)]
struct EventRow {
    imr: u32,
    event_type: u32,
    digest: String,
    event: String,
}

/// Computes MRTD and RTMR0 to RTMR2 of an image in a VM of the given shape.
///
/// Errors: no such image, or a shape that cannot be computed.
pub(crate) fn measure(args: &MeasureArgs, output: Output) -> Outcome {
    let image = find(&args.image)?;
    let memory_bytes = parse_size("--memory", &args.memory, BareUnit::Mebibytes)?;
    let refuse = |error: &dyn std::fmt::Display| {
        Failure::new("measure/unsupported", error.to_string(), "choose another shape; see `dstack measure --help`")
    };
    let document = image.tdx_measurement()?.ok_or_else(|| {
        Failure::new("measure/no-document", format!("{} has no TDX measurement document", image.name()), "build the image again")
    })?;
    let measurement = ImageMeasurement::from_bound_document(&document, &image.os_image_hash()).map_err(|error| refuse(&error))?;
    let qemu = args.qemu.parse().map_err(|error| refuse(&error))?;
    let mut shape = VmShape::new(args.vcpu, memory_bytes, qemu).map_err(|error| refuse(&error))?;
    (shape.num_verity_volumes, shape.num_nics) = (args.volumes, args.nics);
    let tables = acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).map_err(|error| refuse(&error))?;
    let launch = tdx::expected(&measurement, &shape, &tables.digests()).map_err(|error| refuse(&error))?;
    let registers = launch.registers;
    let measured = Measured {
        image: image.name().to_owned(),
        os_image_hash: image.os_image_hash(),
        vcpu: args.vcpu,
        memory_bytes,
        qemu: args.qemu.clone(),
        mrtd: hex::encode(registers.mrtd),
        rtmr0: hex::encode(registers.rtmr0),
        rtmr1: hex::encode(registers.rtmr1),
        rtmr2: hex::encode(registers.rtmr2),
        events: if args.events { launch.events.iter().map(row).collect() } else { Vec::new() },
    };
    output.result(&measured, |palette| {
        let rows = [
            ("image", measured.image.clone()),
            ("OS image hash", measured.os_image_hash.to_string()),
            ("MRTD", measured.mrtd.clone()),
            ("RTMR0", measured.rtmr0.clone()),
            ("RTMR1", measured.rtmr1.clone()),
            ("RTMR2", measured.rtmr2.clone()),
        ];
        let mut text = fields(palette, &rows);
        for event in &measured.events {
            text.push_str(&format!("\n  RTMR{}  {}  {}", event.imr, palette.paint(Tone::Quiet, &event.digest), event.event));
        }
        text
    })
}

fn row(event: &BootEvent) -> EventRow {
    EventRow { imr: event.imr, event_type: event.event_type, digest: hex::encode(event.digest), event: event.name.to_owned() }
}

/// An image directory, or a name in the local store.
fn find(text: &str) -> Outcome<Image> {
    let path = Path::new(text);
    if path.join("metadata.json").is_file() {
        return Ok(Image::load(path)?);
    }
    Ok(ImageStore::new(super::store(None)?).load(text)?)
}
