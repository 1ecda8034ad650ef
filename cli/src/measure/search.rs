//! Which VM would explain a digest: one property is varied at a time, so the answer is a suggestion, not a proof.

use dstack_measurement::{
    Digest384, QemuVersion, VmShape,
    acpi::{AcpiDigests, InterruptTrigger},
    boot_event::event_type,
    sha384,
    td_hob::TdHobWitness,
};

use super::{
    args::Host,
    explain::Case,
    image::Material,
    machine::{Tables, counted, memory},
};

/// Memory that VMs have, in MiB.
fn usual_memory() -> impl Iterator<Item = u64> {
    let small = (1..=32).map(|step| step * 256);
    let large = (9..=960).map(|gib| gib * 1024);
    small.chain(large)
}

/// What a TD HOB with the digest `found` says about memory.
pub(super) fn memory_of(case: &Case<'_>, found: &Digest384) -> String {
    let witness: Option<TdHobWitness> = match case.material {
        Material::Files(files) => files.witness(),
        Material::Document(document) => Some(document.td_hob.clone()),
    };
    let has = |mib: &u64| witness.as_ref().and_then(|witness| witness.td_hob(mib << 20).ok()).is_some_and(|list| sha384(&list) == *found);
    match usual_memory().find(has) {
        Some(mib) => format!("this machine has {} of memory, not {} (--memory)", memory(mib << 20), memory(case.shape.memory_size)),
        None => "this machine has another amount of memory, or firmware with another memory map".to_owned(),
    }
}

/// What the ACPI digests of the log say about the VM.
pub(super) fn tables_of(case: &Case<'_>) -> String {
    let unknown = || "the machine has other devices, vCPUs or another QEMU than expected".to_owned();
    let Some(found) = case.observed.acpi() else { return unknown() };
    // What the memory map says counts for the tables too.
    let logged = case.observed.events.iter().find(|event| event.event_type == event_type::EFI_HANDOFF_TABLES2);
    let logged = logged.and_then(super::observed::digest_of);
    let actual = logged.and_then(|digest| memory_with(case, &digest)).map(|size| VmShape { memory_size: size, ..case.shape.clone() });
    let base = actual.as_ref().unwrap_or(case.shape);
    let tables = case.host.tables;
    if is(tables, base, &found) {
        return format!("they are those of the expected VM with {} of memory", memory(base.memory_size));
    }
    variants(base)
        .into_iter()
        .find(|(shape, _)| is(tables, shape, &found))
        .map(|(_, text)| text)
        .or_else(|| other_tables(tables, base, &found))
        .unwrap_or_else(unknown)
}

fn memory_with(case: &Case<'_>, digest: &Digest384) -> Option<u64> {
    let witness = match case.material {
        Material::Files(files) => files.witness()?,
        Material::Document(document) => document.td_hob.clone(),
    };
    let expected = witness.td_hob(case.shape.memory_size).ok();
    if expected.is_some_and(|list| sha384(&list) == *digest) {
        return Some(case.shape.memory_size);
    }
    usual_memory().map(|mib| mib << 20).find(|size| witness.td_hob(*size).is_ok_and(|list| sha384(&list) == *digest))
}

fn is(tables: Tables, shape: &VmShape, found: &AcpiDigests) -> bool {
    tables.digests(shape).is_ok_and(|digests| digests == *found)
}

/// VMs with one other property, and what to say if it is that.
fn variants(base: &VmShape) -> Vec<(VmShape, String)> {
    let mut out = Vec::new();
    let instead = |has: String, had: String, option: &str| format!("this machine has {has}, not {had} ({option})");
    for cpus in (1..=64).chain([72, 80, 96, 112, 128, 144, 160, 176, 192, 224, 240, 255]) {
        let text = instead(counted(cpus, "vCPU"), counted(base.cpu_count, "vCPU"), "--vcpus");
        out.push((VmShape { cpu_count: cpus, ..base.clone() }, text));
    }
    // Every device looks the same, so only their number is known.
    let devices = base.num_nics + base.num_verity_volumes;
    for count in 0..=16 {
        let text = instead(format!("{} in sum", counted(count, "network card or volume")), format!("{devices}"), "--nics, --volumes");
        out.push((VmShape { num_nics: count, num_verity_volumes: 0, ..base.clone() }, text));
    }
    for count in 0..=16 {
        let text = instead(counted(count, "GPU or NVSwitch"), format!("{}", base.num_gpus + base.num_nvswitches), "--gpus, --nvswitches");
        out.push((VmShape { num_gpus: count, num_nvswitches: 0, ..base.clone() }, text));
    }
    let switched = |holds: bool, on: &str, off: &str| if holds { off.to_owned() } else { on.to_owned() };
    out.push((
        VmShape { hotplug_off: !base.hotplug_off, ..base.clone() },
        switched(base.hotplug_off, "PCI hot-plug is off (--hotplug-off)", "PCI hot-plug is on"),
    ));
    out.push((
        VmShape { pic: !base.pic, ..base.clone() },
        switched(base.pic, "the 8259 interrupt controller is on (--pic on)", "the 8259 interrupt controller is off (--pic off)"),
    ));
    out.push((
        VmShape { hugepages: !base.hugepages, ..base.clone() },
        switched(base.hugepages, "memory comes from huge pages (--hugepages)", "memory does not come from huge pages"),
    ));
    for shift in 30..=50 {
        let text = format!("the 64-bit PCI hole has {} GiB (--pci-hole64-size)", (1_u64 << shift) >> 30);
        out.push((VmShape { pci_hole64_size: 1 << shift, ..base.clone() }, text));
    }
    out
}

/// The same VM on another host.
fn other_tables(tables: Tables, base: &VmShape, found: &AcpiDigests) -> Option<String> {
    let flipped = match tables.trigger {
        InterruptTrigger::Level => (InterruptTrigger::Edge, "its QEMU reports edge triggered interrupts (--interrupts edge)"),
        InterruptTrigger::Edge => (InterruptTrigger::Level, "its QEMU reports level triggered interrupts (--interrupts level)"),
    };
    if is(Tables { trigger: flipped.0, ..tables }, base, found) {
        return Some(flipped.1.to_owned());
    }
    let other_host = match tables.host {
        Host::Hardware => (Host::SoftwareTee, "this is the software TEE of a development stack, not a TDX host (--host software-tee)"),
        Host::SoftwareTee => (Host::Hardware, "this is a TDX host, not the software TEE (--host hardware)"),
    };
    if is(Tables { host: other_host.0, ..tables }, base, found) {
        return Some(other_host.1.to_owned());
    }
    for (major, minor) in [(8, 2), (9, 2), (10, 0), (11, 0), (11, 1)] {
        let version = QemuVersion::new(major, minor, 0);
        for trigger in [InterruptTrigger::Edge, InterruptTrigger::Level] {
            let shape = VmShape { qemu_version: version, ..base.clone() };
            if is(Tables { trigger, host: Host::Hardware, ..tables }, &shape, found) {
                return Some(format!("they are those of QEMU {}.{} (--qemu-version)", version.major, version.minor));
            }
        }
    }
    None
}
