//! The second host bridge, to which GPUs are attached when memory comes from huge pages. It belongs to NUMA node 0.

use super::aml::{self, Aml};
use super::dsdt::{OSC_ALL, osc_method};
use super::resource;

/// Number of its bus; the first host bridge keeps those below.
pub(super) const BUS: u8 = 5;
const NAME: &str = "PC05";
const SLOTS: u64 = 32;
const PINS: u64 = 4;
const LINKS: [&str; 4] = ["LNKD", "LNKA", "LNKB", "LNKC"];

/// How the interrupt routing is stated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RoutingForm {
    /// A method computes the list (QEMU 8.2).
    Computed,
    /// The list itself (QEMU 10.0).
    Listed,
}

/// The bridge before a firmware has given its devices addresses: it has a bus number and nothing else.
pub(super) fn host_bridge(form: RoutingForm) -> Aml {
    let routing = match form {
        RoutingForm::Computed => computed_routing(),
        RoutingForm::Listed => vec![aml::return_(aml::package(&listed_routing()))],
    };
    let bridge = aml::device(
        NAME,
        &[
            aml::name("_UID", aml::int(u64::from(BUS))),
            aml::name("_BBN", aml::int(u64::from(BUS))),
            aml::name("_HID", aml::eisa_id("PNP0A08")),
            aml::name("_CID", aml::eisa_id("PNP0A03")),
            osc_method(OSC_ALL),
            aml::name("_PXM", aml::int(0)),
            aml::method("_PRT", 0, &routing),
            aml::name("_CRS", resource::template(&[resource::bus_numbers(BUS, BUS)])),
        ],
    );
    aml::scope("\\_SB", &[bridge])
}

fn listed_routing() -> Vec<Aml> {
    let entry = |slot: u64, pin: u64| {
        let link = LINKS.into_iter().cycle().nth(usize::try_from(slot + pin).unwrap_or_default()).unwrap_or(LINKS[0]);
        aml::package(&[aml::int(slot << 16 | 0xffff), aml::int(pin), aml::path(link), aml::int(0)])
    };
    (0..SLOTS).flat_map(|slot| (0..PINS).map(move |pin| entry(slot, pin))).collect()
}

fn computed_routing() -> Vec<Aml> {
    let (list, index, slot, link, entry) = (0, 1, 2, 3, 4);
    let choose = |(number, name): (u64, &&str)| {
        let chosen = aml::package(&[aml::int(0), aml::int(0), aml::path(name), aml::int(0)]);
        aml::if_(aml::equal(aml::local(link), aml::int(number)), &[aml::store(chosen, aml::local(entry))])
    };
    let sum = aml::add(aml::local(index), aml::local(slot));
    let address = aml::or(aml::shift_left(aml::local(slot), aml::int(16)), aml::int(0xffff), aml::discard());
    let mut step = vec![
        aml::store(aml::shift_right(aml::local(index), aml::int(2)), aml::local(slot)),
        aml::store(aml::and(sum, aml::int(3), aml::discard()), aml::local(link)),
    ];
    step.extend((0..).zip(&LINKS).map(choose));
    step.extend([
        aml::store(address, aml::index(aml::local(entry), aml::int(0))),
        aml::store(aml::and(aml::local(index), aml::int(3), aml::discard()), aml::index(aml::local(entry), aml::int(1))),
        aml::store(aml::local(entry), aml::index(aml::local(list), aml::local(index))),
        aml::increment(aml::local(index)),
    ]);
    let count = SLOTS * PINS;
    vec![
        aml::store(aml::sized_package(count as u8, &[]), aml::local(list)),
        aml::store(aml::int(0), aml::local(index)),
        aml::while_(aml::less(aml::local(index), aml::int(count)), &step),
        aml::return_(aml::local(list)),
    ]
}
