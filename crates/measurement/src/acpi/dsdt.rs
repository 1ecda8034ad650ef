//! The DSDT of the q35 machine.

use super::aml::{self, Aml, FieldAccess, FieldUnit, RegionSpace};
use super::machine::Machine;
use super::resource::{self, Cacheability};
use super::{cpus, extra_root, hotplug, interrupts, pci};

/// Device labelling interface.
pub(super) const LABELING_UUID: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
const HOST_BRIDGE_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// What the guest may control through `_OSC`; native hot-plug is refused when ACPI hot-plug is on.
pub(super) const OSC_ALL: u64 = 0x1f;
const OSC_ACPI_HOTPLUG: u64 = 0x1e;
/// Start of the PCI Express configuration space, as OVMF programs it.
pub(super) const ECAM_BASE: u32 = 0xe000_0000;
const ECAM_END: u32 = 0xefff_ffff;
/// Last address before the I/O APIC.
const LOW_WINDOW_END: u32 = 0xfebf_ffff;

/// The body of the table, without its header.
pub(super) fn dsdt(machine: &Machine) -> Aml {
    let mut terms = vec![debug_port(), host_bridge(machine)];
    if machine.acpi_hotplug {
        terms.push(hotplug::registers(machine.label_answer));
    }
    terms.extend([
        interrupts::interrupts(machine.trigger),
        aml::scope("_GPE", &[aml::name("_HID", aml::string("ACPI0006"))]),
        cpus::cpus(machine),
    ]);
    terms.extend(machine.extra_root.map(extra_root::host_bridge));
    terms.extend([
        host_bridge_resources(machine),
        sleep_states(),
        aml::scope("\\_SB.PCI0", &[firmware_config()]),
        aml::scope("\\_SB", &[aml::scope("PCI0", &pci::devices(machine))]),
    ]);
    let visits = pci::event_visits(machine);
    if machine.acpi_hotplug {
        let event = if visits.is_some() { hotplug::visit_all() } else { Vec::new() };
        terms.extend(visits);
        terms.push(aml::scope("_GPE", &[aml::method("_E01", 0, &event)]));
    }
    aml::concat(&terms)
}

/// A method that writes text to the debug port.
fn debug_port() -> Aml {
    let write = aml::while_(
        aml::less(aml::local(2), aml::local(1)),
        &[aml::store(aml::element(aml::local(0), aml::local(2)), aml::path("DBGB")), aml::increment(aml::local(2))],
    );
    aml::scope(
        "\\",
        &[
            aml::operation_region("DBG", RegionSpace::SystemIo, 0x0402, 1),
            aml::field("DBG", FieldAccess::BytePreserve, &[FieldUnit::Named("DBGB", 8)]),
            aml::method(
                "DBUG",
                1,
                &[
                    aml::to_hex_string(aml::arg(0), aml::local(0)),
                    aml::to_buffer(aml::local(0), aml::local(0)),
                    aml::subtract(aml::size_of(aml::local(0)), aml::int(1), aml::local(1)),
                    aml::store(aml::int(0), aml::local(2)),
                    write,
                    aml::store(aml::int(0x0a), aml::path("DBGB")),
                ],
            ),
        ],
    )
}

fn host_bridge(machine: &Machine) -> Aml {
    let bridge = aml::device(
        "PCI0",
        &[
            aml::name("_HID", aml::eisa_id("PNP0A08")),
            aml::name("_CID", aml::eisa_id("PNP0A03")),
            aml::name("_UID", aml::int(0)),
            osc_method(if machine.acpi_hotplug { OSC_ACPI_HOTPLUG } else { OSC_ALL }),
            label_method(),
        ],
    );
    let configuration_space = aml::device(
        "DRAC",
        &[
            aml::name("_HID", aml::string("PNP0C01")),
            aml::name("_CRS", resource::template(&[resource::memory_window(ECAM_BASE, ECAM_END, Cacheability::NonCacheable)])),
        ],
    );
    aml::scope("_SB", &[bridge, configuration_space])
}

pub(super) fn osc_method(allowed: u64) -> Aml {
    let status = || aml::path("CDW1");
    let control = || aml::path("CDW3");
    let known = [
        aml::create_dword_field(aml::arg(3), 4, "CDW2"),
        aml::create_dword_field(aml::arg(3), 8, "CDW3"),
        aml::store(control(), aml::local(0)),
        aml::and(aml::local(0), aml::int(allowed), aml::local(0)),
        aml::if_(aml::not(aml::equal(aml::arg(1), aml::int(1))), &[aml::or(status(), aml::int(0x08), status())]),
        aml::if_(aml::not(aml::equal(control(), aml::local(0))), &[aml::or(status(), aml::int(0x10), status())]),
        aml::store(aml::local(0), control()),
    ];
    aml::method(
        "_OSC",
        4,
        &[
            aml::create_dword_field(aml::arg(3), 0, "CDW1"),
            aml::if_(aml::equal(aml::arg(0), aml::uuid(HOST_BRIDGE_UUID)), &known),
            aml::else_(&[aml::or(status(), aml::int(0x04), status())]),
            aml::return_(aml::arg(3)),
        ],
    )
}

/// The first steps of a device method: an answer of one zero byte unless the caller asks for labelling, revision 2.
pub(super) fn label_query_guard(result: u8) -> Vec<Aml> {
    vec![
        aml::if_(aml::not(aml::equal(aml::arg(0), aml::uuid(LABELING_UUID))), &[aml::return_(aml::local(result))]),
        aml::if_(aml::less(aml::arg(1), aml::int(2)), &[aml::return_(aml::local(result))]),
    ]
}

fn label_method() -> Aml {
    let mut query = vec![aml::store(aml::buffer(&[0]), aml::local(0))];
    query.extend(label_query_guard(0));
    query.extend([aml::store(aml::int(0x81), aml::index(aml::local(0), aml::int(0))), aml::return_(aml::local(0))]);
    let label = [
        aml::store(aml::package(&[aml::int(0), aml::string("")]), aml::local(0)),
        aml::store(aml::element(aml::arg(4), aml::int(0)), aml::local(1)),
        aml::store(aml::local(1), aml::index(aml::local(0), aml::int(0))),
        aml::return_(aml::local(0)),
    ];
    aml::serialized_method(
        "EDSM",
        5,
        &[aml::if_(aml::equal(aml::arg(2), aml::int(0)), &query), aml::if_(aml::equal(aml::arg(2), aml::int(7)), &label)],
    )
}

fn host_bridge_resources(machine: &Machine) -> Aml {
    let mut windows = vec![
        resource::bus_numbers(0, if machine.extra_root.is_some() { extra_root::BUS - 1 } else { 0xff }),
        resource::io(0x0cf8, 1, 8),
        resource::io_window(0, 0x0cf7),
        resource::io_window(0x0d00, 0xffff),
        resource::memory_window(0x000a_0000, 0x000b_ffff, Cacheability::Cacheable),
        resource::memory_window(machine.low_memory_end, ECAM_BASE - 1, Cacheability::NonCacheable),
        resource::memory_window(ECAM_END + 1, LOW_WINDOW_END, Cacheability::NonCacheable),
    ];
    windows.extend(machine.wide_window.map(|(start, end)| resource::wide_memory_window(start, end)));
    let mut body = vec![aml::name("_CRS", resource::template(&windows)), io_holder("GPE0", "GPE0 resources", 0x0620, 0x10)];
    if machine.acpi_hotplug {
        body.push(io_holder("PHPR", "PCI Hotplug resources", hotplug::REGISTERS_PORT, hotplug::REGISTERS_LEN));
    }
    aml::scope("\\_SB.PCI0", &body)
}

fn io_holder(name: &str, title: &str, port: u16, len: u8) -> Aml {
    aml::device(
        name,
        &[
            aml::name("_HID", aml::string("PNP0A06")),
            aml::name("_UID", aml::string(title)),
            aml::name("_STA", aml::int(0x0b)),
            aml::name("_CRS", resource::template(&[resource::io(port, 1, len)])),
        ],
    )
}

fn sleep_states() -> Aml {
    let state = |name, kind: u64| aml::name(name, aml::package(&[aml::int(kind), aml::int(kind), aml::int(0), aml::int(0)]));
    aml::scope("\\", &[state("_S3", 1), state("_S4", 2), state("_S5", 0)])
}

fn firmware_config() -> Aml {
    aml::device(
        "FWCF",
        &[
            aml::name("_HID", aml::string("QEMU0002")),
            aml::name("_STA", aml::int(0x0b)),
            aml::name("_CRS", resource::template(&[resource::io(0x0510, 1, 12)])),
        ],
    )
}
