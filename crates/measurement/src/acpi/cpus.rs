//! CPU objects of the DSDT, with the registers for CPU hot-plug that QEMU always describes.

use super::aml::{self, Aml, FieldAccess, FieldUnit, RegionSpace};
use super::machine::Machine;
use super::resource;

const REGISTERS_PORT: u16 = 0x0cd8;
const REGISTERS_LEN: u8 = 12;
/// How the scan method treats CPUs that are to be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CpuScan {
    /// Notified while the CPUs are walked (QEMU 9.2).
    NotifyAtOnce,
    /// Collected first, notified afterwards (QEMU 10.0).
    CollectFirst,
}

const MUTEX: &str = "\\_SB.PCI0.PRES.CPLK";
/// Present and enabled.
const LOCAL_APIC_FLAGS: u32 = 1;

/// Local APIC entry of the MADT for one CPU; also the `_MAT` of its object.
pub(super) fn local_apic(cpu: u8) -> Vec<u8> {
    [&[0, 8, cpu, cpu], LOCAL_APIC_FLAGS.to_le_bytes().as_slice()].concat()
}

/// The scope with hot-plug registers and one object per CPU, then the event that starts a scan.
pub(super) fn cpus(machine: &Machine) -> Aml {
    let start_scan = aml::method("\\_GPE._E02", 0, &[aml::path("\\_SB.CPUS.CSCN")]);
    aml::concat(&[aml::scope("_SB", &[registers(machine.resets_cpu_selector), container(machine)]), start_scan])
}

fn register(name: &str) -> Aml {
    aml::path(&format!("\\_SB.PCI0.PRES.{name}"))
}

fn cpu_name(cpu: u8) -> String {
    format!("C{cpu:03X}")
}

fn registers(resets_selector: bool) -> Aml {
    use FieldUnit::{Named, Reserved};
    let flags = [
        Reserved(32),
        Named("CPEN", 1),
        Named("CINS", 1),
        Named("CRMV", 1),
        Named("CEJ0", 1),
        Named("CEJF", 1),
        Reserved(3),
        Named("CCMD", 8),
    ];
    let mut body = vec![
        aml::name("_HID", aml::eisa_id("PNP0A06")),
        aml::name("_UID", aml::string("CPU Hotplug resources")),
        aml::mutex("CPLK"),
        aml::name("_CRS", resource::template(&[resource::io(REGISTERS_PORT, 1, REGISTERS_LEN)])),
        aml::operation_region("PRST", RegionSpace::SystemIo, REGISTERS_PORT.into(), REGISTERS_LEN.into()),
        aml::field("PRST", FieldAccess::ByteWriteAsZeros, &flags),
        aml::field("PRST", FieldAccess::DwordPreserve, &[Named("CSEL", 32), Reserved(32), Named("CDAT", 32)]),
    ];
    if resets_selector {
        body.push(aml::serialized_method("_INI", 0, &[aml::store(aml::int(0), aml::path("CSEL"))]));
    }
    aml::device("\\_SB.PCI0.PRES", &body)
}

fn container(machine: &Machine) -> Aml {
    let count = machine.cpu_count;
    let notify = |cpu| aml::if_(aml::equal(aml::arg(0), aml::int(u64::from(cpu))), &[aml::notify(&cpu_name(cpu), aml::arg(1))]);
    let notifications: Vec<Aml> = (0..count).map(notify).collect();
    let mut body = vec![
        aml::name("_HID", aml::string("ACPI0010")),
        aml::name("_CID", aml::eisa_id("PNP0A05")),
        aml::method("CTFY", 2, &notifications),
        status_method(),
        eject_method(),
        scan_method(count, machine.cpu_scan),
        report_method(),
    ];
    body.extend((0..count).map(|index| cpu(index, machine.has_numa_node)));
    aml::device("\\_SB.CPUS", &body)
}

fn cpu(index: u8, has_numa_node: bool) -> Aml {
    let id = aml::int(u64::from(index));
    let mut body = vec![
        aml::serialized_method("_STA", 0, &[aml::return_(aml::call("CSTA", std::slice::from_ref(&id)))]),
        aml::name("_MAT", aml::buffer(&local_apic(index))),
    ];
    // The first CPU cannot be removed.
    if index > 0 {
        body.push(aml::method("_EJ0", 1, &[aml::call("CEJ0", std::slice::from_ref(&id))]));
    }
    body.push(aml::serialized_method("_OST", 3, &[aml::call("COST", &[id, aml::arg(0), aml::arg(1), aml::arg(2)])]));
    if has_numa_node {
        body.push(aml::name("_PXM", aml::int(0)));
    }
    aml::processor(&cpu_name(index), index, &body)
}

fn status_method() -> Aml {
    aml::serialized_method(
        "CSTA",
        1,
        &[
            aml::acquire(MUTEX),
            aml::store(aml::arg(0), register("CSEL")),
            aml::store(aml::int(0), aml::local(0)),
            aml::if_(aml::equal(register("CPEN"), aml::int(1)), &[aml::store(aml::int(0x0f), aml::local(0))]),
            aml::release(MUTEX),
            aml::return_(aml::local(0)),
        ],
    )
}

fn eject_method() -> Aml {
    aml::serialized_method(
        "CEJ0",
        1,
        &[aml::acquire(MUTEX), aml::store(aml::arg(0), register("CSEL")), aml::store(aml::int(1), register("CEJ0")), aml::release(MUTEX)],
    )
}

fn report_method() -> Aml {
    aml::serialized_method(
        "COST",
        4,
        &[
            aml::acquire(MUTEX),
            aml::store(aml::arg(0), register("CSEL")),
            aml::store(aml::int(1), register("CCMD")),
            aml::store(aml::arg(1), register("CDAT")),
            aml::store(aml::int(2), register("CCMD")),
            aml::store(aml::arg(2), register("CDAT")),
            aml::release(MUTEX),
        ],
    )
}

/// Collects up to 255 added and removed CPUs at a time, then notifies them.
fn scan_method(count: u8, scan: CpuScan) -> Aml {
    let (added, removed) = (1, 5);
    let collects = scan == CpuScan::CollectFirst;
    let is_full = |length| aml::equal(aml::local(length), aml::int(0xff));
    let mut step = vec![
        aml::store(aml::int(0), aml::local(0)),
        aml::store(aml::local(3), register("CSEL")),
        aml::store(aml::int(0), register("CCMD")),
        aml::if_(aml::less(register("CDAT"), aml::local(3)), &[aml::break_()]),
        aml::if_(
            if collects { aml::lor(is_full(added), is_full(removed)) } else { is_full(added) },
            &[aml::store(aml::int(1), aml::local(4)), aml::break_()],
        ),
        aml::store(register("CDAT"), aml::local(3)),
        collect("CINS", "CNEW", added),
    ];
    step.push(if collects { collect("CRMV", "CEJL", removed) } else { aml::else_(&[notify_removal()]) });
    step.push(aml::increment(aml::local(3)));
    let more = aml::land(aml::equal(aml::local(0), aml::int(1)), aml::less(aml::local(3), aml::int(u64::from(count))));
    let mut round =
        vec![aml::store(aml::int(0), aml::local(4)), aml::store(aml::int(1), aml::local(0)), aml::store(aml::int(0), aml::local(added))];
    if collects {
        round.push(aml::store(aml::int(0), aml::local(removed)));
    }
    round.extend([aml::while_(more, &step), aml::store(aml::int(0), aml::local(2)), tell("CNEW", added, 1, "CINS", true)]);
    if collects {
        round.extend([aml::store(aml::int(0), aml::local(2)), tell("CEJL", removed, 3, "CRMV", false)]);
    }
    let list = |name| aml::name(name, aml::sized_package(0xff, &[]));
    let mut body = vec![aml::acquire(MUTEX), list("CNEW")];
    if collects {
        body.push(list("CEJL"));
    }
    body.extend([
        aml::store(aml::int(0), aml::local(3)),
        aml::store(aml::int(1), aml::local(4)),
        aml::while_(aml::equal(aml::local(4), aml::int(1)), &round),
        aml::release(MUTEX),
    ]);
    aml::serialized_method("CSCN", 0, &body)
}

fn notify_removal() -> Aml {
    aml::if_(
        aml::equal(register("CRMV"), aml::int(1)),
        &[
            aml::call("CTFY", &[aml::local(3), aml::int(3)]),
            aml::store(aml::int(1), register("CRMV")),
            aml::store(aml::int(1), aml::local(0)),
        ],
    )
}

fn collect(flag: &str, list: &str, length: u8) -> Aml {
    aml::if_(
        aml::equal(register(flag), aml::int(1)),
        &[
            aml::store(aml::local(3), aml::index(aml::path(list), aml::local(length))),
            aml::increment(aml::local(length)),
            aml::store(aml::int(1), aml::local(0)),
        ],
    )
}

fn tell(list: &str, length: u8, code: u64, flag: &str, log: bool) -> Aml {
    let mut body =
        vec![aml::store(aml::element(aml::path(list), aml::local(2)), aml::local(3)), aml::call("CTFY", &[aml::local(3), aml::int(code)])];
    if log {
        body.push(aml::store(aml::local(3), aml::debug()));
    }
    body.extend([aml::store(aml::local(3), register("CSEL")), aml::store(aml::int(1), register(flag)), aml::increment(aml::local(2))]);
    aml::while_(aml::less(aml::local(2), aml::local(length)), &body)
}
