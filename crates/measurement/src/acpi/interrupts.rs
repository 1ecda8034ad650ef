//! Interrupt routing of the q35 machine in the DSDT.

use super::aml::{self, Aml};
use super::profile::InterruptTrigger;
use super::resource;

const SLOTS: u32 = 32;
const PINS: u32 = 4;
/// First PCI slot whose pins go to links A to D, except the bridge slot 30.
const FIRST_CHIPSET_SLOT: u32 = 25;
const BRIDGE_SLOT: u32 = 30;
const LINK_INTERRUPTS: [u32; 3] = [5, 10, 11];
const FIRST_GSI: u32 = 16;

/// The interrupt model chosen by the guest, and everything of `\_SB` about routing.
pub(super) fn interrupts(trigger: InterruptTrigger) -> Aml {
    let routing = aml::scope("PCI0", &[table("PRTP", "LNK"), table("PRTA", "GSI"), routing_method()]);
    let mut body = vec![routing, link_status_method(), link_resources_method(trigger)];
    body.extend(('A'..='H').zip(0..).map(|(letter, index)| link(letter, index, trigger)));
    body.extend(('A'..='H').zip(FIRST_GSI..).map(|(letter, gsi)| gsi_link(letter, gsi, trigger)));
    aml::concat(&[
        aml::name("PICF", aml::int(0)),
        aml::method("_PIC", 1, &[aml::store(aml::arg(0), aml::path("PICF"))]),
        aml::scope("_SB", &body),
    ])
}

/// Routing of each pin of each slot to the link `<prefix><letter>`.
fn table(name: &str, prefix: &str) -> Aml {
    let entry = |slot: u32, pin: u32| {
        let index = match slot {
            BRIDGE_SLOT => 4 + pin,
            FIRST_CHIPSET_SLOT.. => pin,
            _ => 4 + (slot + pin) % PINS,
        };
        let letter = ('A'..='H').nth(index as usize).unwrap_or('A');
        let address = u64::from(slot << 16 | 0xffff);
        aml::package(&[aml::int(address), aml::int(u64::from(pin)), aml::path(&format!("{prefix}{letter}")), aml::int(0)])
    };
    let entries: Vec<Aml> = (0..SLOTS).flat_map(|slot| (0..PINS).map(move |pin| entry(slot, pin))).collect();
    aml::name(name, aml::package(&entries))
}

fn routing_method() -> Aml {
    aml::method(
        "_PRT",
        0,
        &[
            aml::if_(aml::equal(aml::path("PICF"), aml::int(0)), &[aml::return_(aml::path("PRTP"))]),
            aml::else_(&[aml::return_(aml::path("PRTA"))]),
        ],
    )
}

fn link_status_method() -> Aml {
    let disabled = aml::and(aml::int(0x80), aml::arg(0), aml::discard());
    aml::method("IQST", 1, &[aml::if_(disabled, &[aml::return_(aml::int(0x09))]), aml::return_(aml::int(0x0b))])
}

fn link_resources_method(trigger: InterruptTrigger) -> Aml {
    aml::serialized_method(
        "IQCR",
        1,
        &[
            aml::name("PRR0", resource::template(&[resource::interrupts(&[0], trigger)])),
            aml::create_dword_field(aml::path("PRR0"), 5, "PRRI"),
            aml::store(aml::and(aml::arg(0), aml::int(0x0f), aml::discard()), aml::path("PRRI")),
            aml::return_(aml::path("PRR0")),
        ],
    )
}

fn link(letter: char, index: u32, trigger: InterruptTrigger) -> Aml {
    let register = aml::path(&format!("PRQ{letter}"));
    aml::device(
        &format!("LNK{letter}"),
        &[
            aml::name("_HID", aml::eisa_id("PNP0C0F")),
            aml::name("_UID", aml::int(u64::from(index))),
            aml::name("_PRS", resource::template(&[resource::interrupts(&LINK_INTERRUPTS, trigger)])),
            aml::method("_STA", 0, &[aml::return_(aml::call("IQST", std::slice::from_ref(&register)))]),
            aml::method("_DIS", 0, &[aml::or(register.clone(), aml::int(0x80), register.clone())]),
            aml::method("_CRS", 0, &[aml::return_(aml::call("IQCR", std::slice::from_ref(&register)))]),
            aml::method("_SRS", 1, &[aml::create_dword_field(aml::arg(0), 5, "PRRI"), aml::store(aml::path("PRRI"), register)]),
        ],
    )
}

fn gsi_link(letter: char, gsi: u32, trigger: InterruptTrigger) -> Aml {
    let resources = resource::template(&[resource::interrupts(&[gsi], trigger)]);
    aml::device(
        &format!("GSI{letter}"),
        &[
            aml::name("_HID", aml::eisa_id("PNP0C0F")),
            aml::name("_UID", aml::int(u64::from(gsi))),
            aml::name("_PRS", resources.clone()),
            aml::name("_CRS", resources),
            aml::method("_DIS", 0, &[]),
            aml::method("_SRS", 1, &[]),
        ],
    )
}
