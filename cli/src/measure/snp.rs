//! `dstack measure --tee snp`: the launch digest.

use dstack_measurement::{
    Digest384,
    snp::{CpuSignature, GuestFeatures, SnpImageFiles, SnpImageMeasurement, SnpShape},
};

use super::{
    args::MachineArgs,
    explain::{Explanation, RegisterLine},
    image::{ImageDir, read},
    machine::counted,
};
use crate::failure::{Failure, Outcome};

const MAX_BOOT_FILE: u64 = 512 << 20;
const DEFAULT_CPU: &str = "EPYC-v4";
/// Shapes are looked for up to this number of vCPUs.
const MAX_VCPUS: u32 = 256;

/// What an SNP guest must measure to.
pub(super) struct SnpPrediction {
    pub(super) measurement: Digest384,
    image: SnpImageMeasurement,
    shape: SnpShape,
}

/// Reads the files of the image and computes its launch digest in the VM of `args`.
pub(super) fn predict(image: &ImageDir, args: &MachineArgs) -> Outcome<SnpPrediction> {
    let firmware = image.metadata.bios_sev.as_deref().ok_or_else(|| {
        Failure::new(
            "measure/no-snp-firmware",
            format!("{} has no firmware for SEV-SNP", image.name),
            "use an image that names one as bios-sev",
        )
    })?;
    let refuse = |error: &dyn std::error::Error| {
        let sources = std::iter::successors(error.source(), |error| error.source());
        let cause = sources.fold(error.to_string(), |text, source| format!("{text}: {source}"));
        Failure::new("measure/unsupported", cause, "choose another shape; see `dstack measure --help`")
    };
    let load = |name: &str| read(&image.file(name)?, MAX_BOOT_FILE);
    let (firmware, kernel, initrd) = (load(firmware)?, load(&image.metadata.kernel)?, load(&image.metadata.initrd)?);
    let files = SnpImageFiles { firmware: &firmware, kernel: &kernel, initrd: &initrd, cmdline: &image.metadata.cmdline };
    let measured = SnpImageMeasurement::from_files(&files).map_err(|error| refuse(&error))?;
    let cpu: CpuSignature =
        args.vcpu_type.as_deref().unwrap_or(DEFAULT_CPU).parse().map_err(|error| refuse(&error as &dyn std::error::Error))?;
    let bits = args.guest_features.as_deref().map_or(Ok(1), |text| u64::from_str_radix(text.trim_start_matches("0x"), 16));
    let bits = bits.map_err(|_| Failure::usage("measure/option", "--guest-features is not a hex number", "write it as 0x1 or 0x21"))?;
    let guest_features = GuestFeatures::new(bits).map_err(|error| refuse(&error))?;
    let shape = SnpShape { guest_features, ..SnpShape::new(args.vcpus.unwrap_or(2), cpu) };
    let measurement = measured.launch_digest(&shape).map_err(|error| refuse(&error))?;
    Ok(SnpPrediction { measurement, image: measured, shape })
}

impl SnpPrediction {
    /// `2 vCPUs, EPYC-Milan, guest features 0x1`.
    pub(super) fn describe(&self) -> String {
        describe(&self.shape)
    }

    /// Why a report has another MEASUREMENT.
    pub(super) fn explain(&self, found: &Digest384) -> Explanation {
        let equal = self.measurement == *found;
        let meaning = if equal {
            "firmware, kernel, command line, initrd and vCPUs are as expected".to_owned()
        } else {
            match self.image.find_shape(found, MAX_VCPUS) {
                Some(shape) => format!("it is this image, in a VM of {} and not of {}", describe(&shape), describe(&self.shape)),
                None => "no VM of this image has that digest: another firmware, kernel, command line or initrd".to_owned(),
            }
        };
        let summary = if equal { format!("MEASUREMENT is as expected: {meaning}.") } else { format!("MEASUREMENT differs: {meaning}.") };
        let line = RegisterLine {
            name: "MEASUREMENT",
            equal: Some(equal),
            expected: Some(hex::encode(self.measurement)),
            found: hex::encode(found),
            meaning,
            differences: Vec::new(),
        };
        Explanation { matches: equal, is_complete: true, summary, registers: vec![line] }
    }
}

fn describe(shape: &SnpShape) -> String {
    let cpu = shape.cpu.name().map_or_else(|| format!("CPU signature {:#x}", shape.cpu.value()), str::to_owned);
    format!("{}, {cpu}, guest features {:#x}", counted(shape.vcpus, "vCPU"), shape.guest_features.bits())
}
