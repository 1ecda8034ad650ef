//! Where a launch parts from the prediction, in words.

use dstack_measurement::{BootEvent, Digest384, PageAddOrder, VmShape, boot_event::event_type as kind, kernel::SetupHeader};
use serde::Serialize;

use super::{
    image::Material,
    observed::{ObservedTd, digest_of},
    predict::{HostPart, Prediction, REGISTERS},
    search,
};

/// One register of the quote beside the prediction.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RegisterLine {
    pub(super) name: &'static str,
    /// `None`: not known.
    pub(super) equal: Option<bool>,
    pub(super) expected: Option<String>,
    pub(super) found: String,
    /// What follows from it.
    pub(super) meaning: String,
    /// Where its log parts from the prediction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) differences: Vec<Difference>,
}

/// One entry of a log that is not as predicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// Position among the register's entries, from 0.
    pub(super) position: usize,
    /// What is measured there.
    pub(super) event: String,
    pub(super) expected: Option<String>,
    pub(super) found: Option<String>,
    pub(super) meaning: String,
}

/// The comparison.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Explanation {
    pub(super) matches: bool,
    /// A register could not be predicted.
    pub(super) is_complete: bool,
    pub(super) summary: String,
    pub(super) registers: Vec<RegisterLine>,
}

/// Everything the explanation may look at.
pub(super) struct Case<'a> {
    pub(super) observed: &'a ObservedTd,
    pub(super) prediction: &'a Prediction,
    pub(super) material: &'a Material,
    pub(super) shape: &'a VmShape,
    pub(super) host: HostPart,
}

/// What each register stands for, when it is as expected.
const PROVES: [&str; 4] = [
    "the firmware is the image's",
    "memory, devices, UEFI variables and ACPI tables are as expected",
    "the kernel is the image's",
    "command line and initrd are the image's",
];

/// Compares the quote with the prediction.
pub(super) fn explain(case: &Case<'_>) -> Explanation {
    let lines: Vec<RegisterLine> = (0..REGISTERS.len()).filter_map(|index| register_line(case, index)).collect();
    let is_complete = lines.iter().all(|line| line.equal.is_some());
    let matches = is_complete && lines.iter().all(|line| line.equal == Some(true));
    Explanation { matches, is_complete, summary: summary(&lines), registers: lines }
}

fn register_line(case: &Case<'_>, index: usize) -> Option<RegisterLine> {
    let (name, found, expected) = (*REGISTERS.get(index)?, *case.observed.registers.get(index)?, *case.prediction.registers.get(index)?);
    let equal = expected.map(|expected| expected == found);
    let differences = if equal == Some(true) { Vec::new() } else { differences(case, index) };
    let meaning = match equal {
        Some(true) => PROVES.get(index).copied().unwrap_or_default().to_owned(),
        None => case.prediction.gap.clone().unwrap_or_default(),
        Some(false) if index == 0 => firmware_meaning(case, &found),
        Some(false) => register_meaning(case, index, &differences),
    };
    Some(RegisterLine { name, equal, expected: expected.map(hex::encode), found: hex::encode(found), meaning, differences })
}

fn firmware_meaning(case: &Case<'_>, found: &Digest384) -> String {
    let (other, name) = match case.shape.page_add_order {
        PageAddOrder::SinglePass => (PageAddOrder::TwoPass, "in two passes, as QEMU 8 does, not page by page"),
        PageAddOrder::TwoPass => (PageAddOrder::SinglePass, "page by page, as QEMU 9 and later do, not in two passes"),
    };
    if case.material.mrtd(other).as_ref() == Some(found) {
        return format!("the firmware is the image's, but QEMU measured its pages {name} (--page-order)");
    }
    "this machine started another firmware".to_owned()
}

fn register_meaning(case: &Case<'_>, index: usize, differences: &[Difference]) -> String {
    let has_entries = case.observed.events.iter().any(|event| usize::try_from(event.imr) == Ok(index - 1));
    let replays = case.observed.replays.get(index - 1).copied().unwrap_or(false);
    match differences.first() {
        _ if !has_entries => format!(
            "the evidence has no log of it; what it covers: {}",
            ["memory, devices, UEFI variables and ACPI tables", "the kernel", "command line and initrd"]
                .get(index - 1)
                .copied()
                .unwrap_or_default()
        ),
        _ if !replays => "the log does not lead to the value in the quote: it is not the log of this machine".to_owned(),
        Some(first) => format!("at the {}: {}", first.event, first.meaning),
        None => "every entry is as expected, and yet the value differs".to_owned(),
    }
}

/// Entries of a register that are not as predicted. An entry that one side lacks shifts the others, so the longest common part counts.
fn differences(case: &Case<'_>, index: usize) -> Vec<Difference> {
    let Some(imr) = index.checked_sub(1).and_then(|imr| u32::try_from(imr).ok()) else { return Vec::new() };
    let found: Vec<Option<Digest384>> = case.observed.events.iter().filter(|event| event.imr == imr).map(digest_of).collect();
    let expected: Vec<&BootEvent> = case.prediction.events.iter().filter(|event| event.imr == imr).collect();
    if found.is_empty() {
        return Vec::new();
    }
    if found.len() != expected.len() {
        return vec![layout_difference(case, &expected, &found)];
    }
    let is_gap = index == 1 && case.prediction.gap.is_some();
    let unknown = |event: &BootEvent| is_gap && (is_acpi(event) || event.event_type == kind::EFI_HANDOFF_TABLES);
    let mut out: Vec<Difference> = Vec::new();
    let mut has_acpi = false;
    for (position, (expected, found)) in expected.iter().zip(&found).enumerate() {
        if Some(expected.digest) == *found || unknown(expected) {
            continue;
        }
        // The three ACPI files change together.
        let is_repeated = is_acpi(expected) && std::mem::replace(&mut has_acpi, true);
        out.push(Difference {
            position,
            event: expected.name.to_owned(),
            expected: Some(hex::encode(expected.digest)),
            found: found.map(hex::encode),
            meaning: if is_repeated { "for the same reason".to_owned() } else { meaning(case, expected, found.as_ref()) },
        });
    }
    out
}

/// The log has another number of entries: the first that parts, and that it is another firmware's order.
fn layout_difference(case: &Case<'_>, expected: &[&BootEvent], found: &[Option<Digest384>]) -> Difference {
    let position = expected.iter().zip(found).position(|(expected, found)| Some(expected.digest) != *found);
    let position = position.unwrap_or_else(|| expected.len().min(found.len()));
    let is_newer = case.observed.smbios().is_some();
    let meaning = if is_newer && case.host.ovmf == dstack_measurement::tdx::OvmfVariant::Pre202505 {
        "this firmware logs the events of OVMF since 202505 (--ovmf since202505)".to_owned()
    } else {
        format!(
            "the log has {} entries here, {} are expected: another firmware, or a device with a driver of its own",
            found.len(),
            expected.len()
        )
    };
    Difference {
        position,
        event: expected.get(position).map_or_else(|| "end of the log".to_owned(), |event| event.name.to_owned()),
        expected: expected.get(position).map(|event| hex::encode(event.digest)),
        found: found.get(position).copied().flatten().map(hex::encode),
        meaning,
    }
}

fn is_acpi(event: &BootEvent) -> bool {
    event.payload == b"ACPI DATA"
}

/// What it means that `expected` came out as `found`.
fn meaning(case: &Case<'_>, expected: &BootEvent, found: Option<&Digest384>) -> String {
    let Some(found) = found else { return "the entry has no SHA-384 digest".to_owned() };
    match expected.event_type {
        kind::EFI_HANDOFF_TABLES2 => search::memory_of(case, found),
        kind::PLATFORM_CONFIG_FLAGS if is_acpi(expected) => search::tables_of(case),
        kind::PLATFORM_CONFIG_FLAGS => "QEMU was given a boot menu or a boot order".to_owned(),
        kind::EFI_PLATFORM_FIRMWARE_BLOB2 => "the firmware carries other UEFI variables".to_owned(),
        kind::EFI_VARIABLE_DRIVER_CONFIG => {
            format!("the UEFI variable {} is set: Secure Boot is configured in this firmware", expected.name)
        }
        kind::EFI_VARIABLE_BOOT => "this firmware has other boot entries".to_owned(),
        kind::EFI_HANDOFF_TABLES => "the host has another CPU, or its SMBIOS structures were changed".to_owned(),
        kind::EFI_BOOT_SERVICES_APPLICATION => kernel_meaning(case, found),
        kind::EVENT_TAG if expected.name == "initrd" => "this machine booted with another initrd".to_owned(),
        kind::EVENT_TAG => "this machine booted with another kernel command line".to_owned(),
        kind::EFI_ACTION | kind::SEPARATOR => "the firmware went another way than starting one kernel".to_owned(),
        _ => "this entry is not as expected".to_owned(),
    }
}

fn kernel_meaning(case: &Case<'_>, found: &Digest384) -> String {
    let kernel = |memory_size, header| case.material.kernel(memory_size, header).is_some_and(|digest| digest == *found);
    let memory_size = case.shape.memory_size;
    if kernel(memory_size, SetupHeader::Unchanged) {
        return "it is the image's kernel, but the firmware got it with its header as it is: from QEMU 10.2 or later, or from 10.0 by firmware since 202502 (--qemu-version)".to_owned();
    }
    if kernel(memory_size, SetupHeader::Qemu) {
        return "it is the image's kernel, but QEMU wrote into its header, as releases before 10.2 do, and firmware before 202502 looks at no other copy (--qemu-version)".to_owned();
    }
    let other = (256_u64..0xb00).step_by(256).chain([0xb00]).map(|mib| mib << 20);
    if let Some(memory) = other.into_iter().find(|memory| kernel(*memory, SetupHeader::Qemu)) {
        return format!("it is the image's kernel, placed by QEMU for a VM with {} (--memory)", super::machine::memory(memory));
    }
    "this machine booted another kernel".to_owned()
}

fn summary(lines: &[RegisterLine]) -> String {
    let names = |wanted: Option<bool>| -> Vec<&str> { lines.iter().filter(|line| line.equal == wanted).map(|line| line.name).collect() };
    let (same, unknown) = (names(Some(true)), names(None));
    let mut sentences: Vec<String> = lines
        .iter()
        .filter(|line| line.equal == Some(false))
        .map(|line| {
            let joint = if line.meaning.starts_with("at the ") { " " } else { ": " };
            format!("{} differs{joint}{}.", line.name, line.meaning)
        })
        .collect();
    if sentences.is_empty() && unknown.is_empty() {
        return "Every register is as expected: this machine booted this image in this VM.".to_owned();
    }
    for line in lines.iter().filter(|line| line.equal.is_none()) {
        sentences.push(format!("{} cannot be predicted: {}.", line.name, line.meaning));
    }
    if !same.is_empty() {
        let proves = lines.iter().filter(|line| line.equal == Some(true)).map(|line| line.meaning.clone()).collect::<Vec<_>>().join("; ");
        let verb = if same.len() == 1 { "is" } else { "are" };
        sentences.push(format!("{} {verb} as expected: {proves}.", joined(&same)));
    }
    sentences.join("\n")
}

fn joined(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}
