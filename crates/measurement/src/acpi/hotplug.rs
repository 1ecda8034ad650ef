//! Registers and methods for PCI hot-plug through ACPI, which QEMU describes unless it is switched off.

use super::aml::{self, Aml, FieldAccess, FieldUnit, RegionSpace};
use super::dsdt::label_query_guard;

pub(super) const REGISTERS_PORT: u16 = 0x0cc0;
pub(super) const REGISTERS_LEN: u8 = 0x18;
/// What the label method answers for a slot without an index.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelAnswer {
    /// Whatever the register holds, with an empty name (QEMU 8.2).
    Always,
    /// An empty package (QEMU 10.0).
    WhenSet,
}

const LOCK: &str = "BLCK";
const LOCK_PATH: &str = "\\_SB.PCI0.BLCK";

pub(super) fn registers(answer: LabelAnswer) -> Aml {
    let region = |name: &'static str, offset: u16, units: &[FieldUnit]| {
        let len = 4 * units.len() as u64;
        aml::concat(&[
            aml::operation_region(name, RegionSpace::SystemIo, u64::from(REGISTERS_PORT + offset), len),
            aml::field(name, FieldAccess::DwordWriteAsZeros, units),
        ])
    };
    let dword = |name| FieldUnit::Named(name, 32);
    let bit = || aml::shift_left(aml::int(1), aml::arg(1));
    aml::scope(
        "_SB.PCI0",
        &[
            region("PCST", 0, &[dword("PCIU"), dword("PCID")]),
            region("SEJ", 8, &[dword("B0EJ")]),
            region("BNMR", 16, &[dword("BNUM"), dword("PIDX")]),
            aml::mutex(LOCK),
            aml::method(
                "PCEJ",
                2,
                &[
                    aml::acquire(LOCK),
                    aml::store(aml::arg(0), aml::path("BNUM")),
                    aml::store(bit(), aml::path("B0EJ")),
                    aml::release(LOCK),
                    aml::return_(aml::int(0)),
                ],
            ),
            aml::method(
                "AIDX",
                2,
                &[
                    aml::acquire(LOCK),
                    aml::store(aml::arg(0), aml::path("BNUM")),
                    aml::store(bit(), aml::path("PIDX")),
                    aml::store(aml::path("PIDX"), aml::local(0)),
                    aml::release(LOCK),
                    aml::return_(aml::local(0)),
                ],
            ),
            label_method(answer),
        ],
    )
}

/// What a hot-plug event does when there is a bus to visit.
pub(super) fn visit_all() -> Vec<Aml> {
    vec![aml::acquire(LOCK_PATH), aml::path("\\_SB.PCI0.PCNT"), aml::release(LOCK_PATH)]
}

/// Tells whether a slot has an index, and which.
fn label_method(answer: LabelAnswer) -> Aml {
    let ask = || {
        let element = |at| aml::element(aml::arg(4), aml::int(at));
        aml::store(aml::call("AIDX", &[element(0), element(1)]), aml::local(2))
    };
    let is_zero = || aml::equal(aml::local(2), aml::int(0));
    let is_all_ones = || aml::equal(aml::local(2), aml::int(0xffff_ffff));
    let set = |bit: Aml| aml::or(aml::local(1), bit, aml::local(1));

    let mut query = vec![aml::store(aml::buffer(&[0]), aml::local(0))];
    query.extend(label_query_guard(0));
    query.extend([
        aml::store(aml::int(0), aml::local(1)),
        ask(),
        aml::if_(
            aml::not(aml::or(is_zero(), is_all_ones(), aml::discard())),
            &[set(aml::int(1)), set(aml::shift_left(aml::int(1), aml::int(7)))],
        ),
        aml::store(aml::local(1), aml::index(aml::local(0), aml::int(0))),
        aml::return_(aml::local(0)),
    ]);
    let set_index = || aml::store(aml::local(2), aml::index(aml::local(0), aml::int(0)));
    let label = match answer {
        LabelAnswer::Always => {
            vec![aml::store(aml::package(&[aml::int(0), aml::string("")]), aml::local(0)), ask(), set_index(), aml::return_(aml::local(0))]
        }
        LabelAnswer::WhenSet => vec![
            ask(),
            aml::store(aml::sized_package(2, &[]), aml::local(0)),
            aml::if_(
                aml::not(aml::lor(is_zero(), is_all_ones())),
                &[set_index(), aml::store(aml::string(""), aml::index(aml::local(0), aml::int(1)))],
            ),
            aml::return_(aml::local(0)),
        ],
    };
    aml::serialized_method(
        "PDSM",
        5,
        &[aml::if_(aml::equal(aml::arg(2), aml::int(0)), &query), aml::if_(aml::equal(aml::arg(2), aml::int(7)), &label)],
    )
}
