//! The functions of the root bus in the DSDT, and hot-plug of what sits behind a port.

use super::aml::{self, Aml, FieldAccess, FieldUnit, RegionSpace};
use super::machine::{Machine, RootDevice};
use super::profile::SerialInterrupt;
use super::resource;

const CHIPSET_SLOT: u8 = 31;

/// One object per function on the root bus: host bridge, our devices, and the chipset in slot 31.
pub(super) fn devices(machine: &Machine) -> Vec<Aml> {
    let mut devices = vec![device(0, 0, &[])];
    devices.extend(machine.root_devices.iter().map(|root_device| match *root_device {
        RootDevice::Endpoint { slot } => device(slot, 0, &[]),
        RootDevice::Port { slot, bus_selector } => port(slot, bus_selector, machine.acpi_hotplug),
    }));
    devices.push(device(CHIPSET_SLOT, 0, &isa_bridge(machine.serial_interrupt)));
    devices.extend([device(CHIPSET_SLOT, 2, &[]), device(CHIPSET_SLOT, 3, &[])]);
    devices
}

fn name_of(slot: u8, function: u8) -> String {
    format!("S{:02X}", slot << 3 | function)
}

fn device(slot: u8, function: u8, body: &[Aml]) -> Aml {
    let address = u64::from(slot) << 16 | u64::from(function);
    aml::device(&name_of(slot, function), &[aml::name("_ADR", aml::int(address)), body.concat()])
}

/// A port and the device behind it, which is always in slot 0.
fn port(slot: u8, bus_selector: u8, acpi_hotplug: bool) -> Aml {
    let mut body = vec![device(0, 0, &[])];
    if acpi_hotplug {
        body.extend([
            aml::name("BSEL", aml::int(u64::from(bus_selector))),
            aml::scope("S00", &pluggable_slot()),
            aml::method("DVNT", 2, &[aml::if_(aml::and(aml::arg(0), aml::int(1), aml::discard()), &[aml::notify("S00", aml::arg(1))])]),
        ]);
    }
    device(slot, 0, &body)
}

fn pluggable_slot() -> [Aml; 4] {
    let put = |name, at: u64| aml::store(aml::path(name), aml::index(aml::local(0), aml::int(at)));
    let query = [
        aml::store(aml::package(&[aml::int(0), aml::int(0)]), aml::local(0)),
        put("BSEL", 0),
        put("ASUN", 1),
        aml::return_(aml::call("PDSM", &[aml::arg(0), aml::arg(1), aml::arg(2), aml::arg(3), aml::local(0)])),
    ];
    [
        aml::name("ASUN", aml::int(0)),
        aml::serialized_method("_DSM", 4, &query),
        aml::name("_SUN", aml::int(0)),
        aml::method("_EJ0", 1, &[aml::call("PCEJ", &[aml::path("BSEL"), aml::path("_SUN")])]),
    ]
}

/// The methods by which a hot-plug event visits the bus behind each port; `None` without ports.
pub(super) fn event_visits(machine: &Machine) -> Option<Aml> {
    let mut ports: Vec<(u8, u8)> = machine
        .root_devices
        .iter()
        .filter_map(|device| match *device {
            RootDevice::Port { slot, bus_selector } => Some((bus_selector, slot)),
            RootDevice::Endpoint { .. } => None,
        })
        .collect();
    if ports.is_empty() || !machine.acpi_hotplug {
        return None;
    }
    ports.sort_unstable();
    let tell = |register, code: u64| aml::call("DVNT", &[aml::path(register), aml::int(code)]);
    let visit = |(bus_selector, slot): (u8, u8)| {
        let body = [aml::store(aml::int(u64::from(bus_selector)), aml::path("BNUM")), tell("PCIU", 1), tell("PCID", 3)];
        aml::scope(&name_of(slot, 0), &[aml::method("PCNT", 0, &body)])
    };
    let call = |(_, slot): &(u8, u8)| aml::parent_path(&format!("{}.PCNT", name_of(*slot, 0)));
    let calls: Vec<Aml> = ports.iter().map(call).collect();
    let mut body: Vec<Aml> = ports.into_iter().map(visit).collect();
    body.push(aml::method("PCNT", 0, &calls));
    Some(aml::scope("\\_SB.PCI0", &body))
}

fn isa_bridge(serial: SerialInterrupt) -> Vec<Aml> {
    let link = |name| FieldUnit::Named(name, 8);
    let links = [
        link("PRQA"),
        link("PRQB"),
        link("PRQC"),
        link("PRQD"),
        FieldUnit::Reserved(32),
        link("PRQE"),
        link("PRQF"),
        link("PRQG"),
        link("PRQH"),
    ];
    let isa_device = |name, id, extra: &[Aml], resources: &[Vec<u8>]| {
        aml::device(name, &[aml::name("_HID", aml::eisa_id(id)), extra.concat(), aml::name("_CRS", resource::template(resources))])
    };
    let present = || aml::name("_STA", aml::int(0x0f));
    let serial_interrupt = match serial {
        SerialInterrupt::Plain => resource::irq(4),
        SerialInterrupt::Shared => resource::shared_irq(4),
    };
    vec![
        aml::operation_region("PIRQ", RegionSpace::PciConfig, 0x60, 12),
        aml::scope("\\_SB", &[aml::field("PCI0.SF8.PIRQ", FieldAccess::BytePreserve, &links)]),
        isa_device("KBD", "PNP0303", &[present()], &[resource::io(0x60, 1, 1), resource::io(0x64, 1, 1), resource::irq(1)]),
        isa_device("MOU", "PNP0F13", &[present()], &[resource::irq(12)]),
        isa_device("COM1", "PNP0501", &[aml::name("_UID", aml::int(1)), present()], &[resource::io(0x03f8, 0, 8), serial_interrupt]),
        isa_device("RTC", "PNP0B00", &[], &[resource::io(0x70, 1, 8), resource::irq(8)]),
    ]
}
