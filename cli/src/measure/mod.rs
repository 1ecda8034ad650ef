//! `dstack measure`: what an OS image must measure to in a VM, and where evidence differs from that.
//!
//! Everything is computed from the image's files and the options; `--diff` compares with evidence, whose signature it does not check.

mod args;
mod explain;
mod image;
mod machine;
mod observed;
mod predict;
mod render;
mod report;
mod search;
mod snp;
#[cfg(test)]
mod tests;

use dstack_measurement::BootEvent;

pub(crate) use args::MeasureArgs;

use self::{
    args::Tee,
    explain::{Case, Explanation},
    image::{ImageDir, Material},
    observed::{Observed, ObservedTd},
    predict::{HostPart, Prediction},
    report::{EventRow, Report},
};
use crate::{
    failure::{EXIT_NEGATIVE, EXIT_UNDETERMINED, Failure, Outcome},
    output::Output,
};

/// Computes the registers, or compares them. Returns the exit code: 0 computed or same, 1 different, 3 not known.
///
/// Errors: no such image or evidence, or a shape that cannot be measured.
pub(crate) fn measure(args: &MeasureArgs, output: Output) -> Outcome<u8> {
    let name = args.image.as_deref().or(args.directory.as_deref()).unwrap_or_default();
    let image = ImageDir::open(name)?;
    let observed = args.diff.as_deref().map(Observed::read).transpose()?;
    let tee = match (&observed, args.tee) {
        (Some(Observed::Td(_)), Some(Tee::Snp)) | (Some(Observed::Snp { .. }), Some(Tee::Tdx)) => {
            return Err(Failure::usage("measure/option", "--tee names another hardware than the evidence is of", "leave out --tee"));
        }
        (Some(Observed::Snp { .. }), _) => Tee::Snp,
        (_, tee) => tee.unwrap_or(Tee::Tdx),
    };
    let report = match (tee, &observed) {
        (Tee::Snp, Some(Observed::Snp { measurement })) => snp_report(&image, args, Some(measurement))?,
        (Tee::Snp, _) => snp_report(&image, args, None)?,
        (Tee::Tdx, Some(Observed::Td(td))) => tdx_report(&image, args, Some(td), output)?,
        (Tee::Tdx, _) => tdx_report(&image, args, None, output)?,
    };
    let code = exit_code(&report);
    output.result(&report, |palette| render::text(palette, &report))?;
    Ok(code)
}

fn exit_code(report: &Report) -> u8 {
    let differs = |explanation: &Explanation| explanation.registers.iter().any(|line| line.equal == Some(false));
    match &report.explanation {
        Some(explanation) if differs(explanation) => EXIT_NEGATIVE,
        Some(explanation) if !explanation.is_complete => EXIT_UNDETERMINED,
        None if report.rtmr0_reason.is_some() => EXIT_UNDETERMINED,
        _ => 0,
    }
}

fn snp_report(image: &ImageDir, args: &MeasureArgs, found: Option<&[u8; 48]>) -> Outcome<Report> {
    let prediction = snp::predict(image, &args.machine)?;
    Ok(Report {
        image: image.name.clone(),
        os_image_hash: image.os_image_hash,
        tee: "snp",
        vm: prediction.describe(),
        vcpus: args.machine.vcpus.unwrap_or(2),
        measurement: Some(hex::encode(prediction.measurement)),
        explanation: found.map(|found| prediction.explain(found)),
        ..Report::default()
    })
}

fn tdx_report(image: &ImageDir, args: &MeasureArgs, observed: Option<&ObservedTd>, output: Output) -> Outcome<Report> {
    let config = observed.and_then(|observed| observed.config.as_ref());
    let shape = machine::shape(&args.machine, config)?;
    let is_simulated = config.is_some_and(|config| config.simulated_tee.is_some());
    let tables = machine::tables(&args.tables, &shape, is_simulated)?;
    let ovmf = machine::ovmf(&args.tables, image.metadata.ovmf_variant.as_deref())?;
    let smbios = match &args.tables.smbios {
        Some(text) => Some(machine::digest("--smbios", text)?),
        None => observed.and_then(ObservedTd::smbios),
    };
    let host = HostPart { tables, ovmf, smbios };
    let material = if args.document {
        let document = image.document().ok_or_else(|| {
            Failure::new(
                "measure/no-document",
                format!("{} has no TDX measurement document of its own", image.name),
                "measure the files: leave out --document",
            )
        })?;
        Material::Document(Box::new(document))
    } else {
        Material::read(image, ovmf)?
    };
    let prediction = predict::predict(&material, &shape, host)?;
    warn_of_foreign_document(image, &material, &shape, &prediction, output);
    let explanation =
        observed.map(|observed| explain::explain(&Case { observed, prediction: &prediction, material: &material, shape: &shape, host }));
    let [mrtd, rtmr0, rtmr1, rtmr2] = prediction.registers.map(|register| register.map(hex::encode));
    Ok(Report {
        image: image.name.clone(),
        os_image_hash: image.os_image_hash,
        tee: "tdx",
        vm: machine::describe(&shape),
        vcpus: shape.cpu_count,
        memory_bytes: Some(shape.memory_size),
        qemu_version: Some(shape.qemu_version.to_string()),
        tables: Some(tables.describe(&shape)),
        mrtd,
        rtmr0,
        rtmr0_reason: prediction.gap.clone(),
        rtmr1,
        rtmr2,
        measurement: None,
        events: if args.events { prediction.events.iter().map(row).collect() } else { Vec::new() },
        explanation,
    })
}

/// The document that verifiers go by must say the same as the files.
fn warn_of_foreign_document(
    image: &ImageDir,
    material: &Material,
    shape: &dstack_measurement::VmShape,
    prediction: &Prediction,
    output: Output,
) {
    let Material::Files(_) = material else { return };
    let Some(document) = image.document() else { return };
    let of_event = |imr: u32| prediction.events.iter().filter(move |event| event.imr == imr).map(|event| event.digest);
    let says_otherwise = prediction.registers.first() != Some(&Some(document.mrtd(shape.page_add_order)))
        || of_event(2).ne([document.cmdline_sha384, document.initrd_sha384]);
    if says_otherwise {
        output.warn("the image's measurement document was not computed from these files; verifiers that go by it will refuse this image");
    }
}

fn row(event: &BootEvent) -> EventRow {
    EventRow { imr: event.imr, event_type: event.event_type, digest: hex::encode(event.digest), event: event.name.to_owned() }
}
