//! One entry of a log in words.

use sha2::{Digest as _, Sha384};

use crate::{content::Content, event::Event, event_type as ev, event_type::event_type_name};

/// Payload that the firmware gives to each of QEMU's ACPI files.
const ACPI_DATA: &[u8] = b"ACPI DATA";
/// The ACPI files in the order in which the firmware measures them.
const ACPI_FILES: [&str; 3] = ["ACPI table loader", "ACPI RSDP", "ACPI tables"];
/// The kernel's EFI stub measures these two.
const STUB_EVENTS: [&str; 2] = ["kernel command line", "initrd"];

/// What `events[index]` is: its part in a guest's boot, its type, and what its payload says; `None` beyond the end.
///
/// Entries without payload, as in stripped logs, are told by their place and by digests that are the same in every boot.
/// The words are for people: of boot events only the digest is proven by a register that agrees.
#[must_use]
pub fn describe(events: &[Event], index: usize) -> Option<String> {
    let event = events.get(index)?;
    let content = event.content();
    if event.is_runtime() {
        return Some(format!("runtime event {content}"));
    }
    let kind = event_type_name(event.event_type).map_or_else(|| format!("event of type {:#010x}", event.event_type), str::to_owned);
    let part = if event.event.is_empty() { part(events, index).map(str::to_owned) } else { Some(event.event.clone()) };
    let says = match content {
        Content::Opaque { .. } | Content::Text(_) | Content::HandoffTables { .. } if part.is_some() => None,
        Content::Opaque { length: 0 } => known_digest(&event.digest).map(str::to_owned),
        content => Some(content.to_string()),
    };
    let words = match (part, says) {
        (Some(part), Some(says)) if part != says && !says.contains(&part) => Some(format!("{part}, {says}")),
        (_, Some(says)) => Some(says),
        (part, None) => part,
    };
    Some(words.map_or_else(|| kind.clone(), |words| format!("{words} ({kind})")))
}

/// The part an unnamed entry plays in the boot of a TD: told by register, type and order.
fn part(events: &[Event], index: usize) -> Option<&'static str> {
    let event = events.get(index)?;
    let alike = |other: &&Event| other.imr == event.imr && other.event_type == event.event_type && is_acpi(other) == is_acpi(event);
    let nth = events.iter().take(index).filter(alike).count();
    let total = nth + events.iter().skip(index).filter(alike).count();
    match (event.imr, event.event_type) {
        (0, ev::EV_EFI_HANDOFF_TABLES2) if nth == 0 => Some("TD HOB, the memory map that the VMM passed"),
        (0, ev::EV_EFI_PLATFORM_FIRMWARE_BLOB2) if nth == 0 => Some("firmware's variable store"),
        (0, ev::EV_PLATFORM_CONFIG_FLAGS) if is_acpi(event) && total == ACPI_FILES.len() => ACPI_FILES.get(nth).copied(),
        (1, ev::EV_EFI_BOOT_SERVICES_APPLICATION) if total == 1 => Some("kernel"),
        (2, ev::EV_EVENT_TAG) if total == STUB_EVENTS.len() => STUB_EVENTS.get(nth).copied(),
        _ => None,
    }
}

fn is_acpi(event: &Event) -> bool {
    event.event_payload.is_empty() || event.event_payload == ACPI_DATA
}

/// What a digest stands for that is the same in every boot.
fn known_digest(digest: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 6] = [
        (&[0; 4], "separator"),
        (b"Calling EFI Application from Boot Option", "Calling EFI Application from Boot Option"),
        (b"Returning from EFI Application from Boot Option", "Returning from EFI Application from Boot Option"),
        (b"Exit Boot Services Invocation", "Exit Boot Services Invocation"),
        (b"Exit Boot Services Returned with Success", "Exit Boot Services Returned with Success"),
        (&[0; 2], "UEFI variable BootOrder: 0000"),
    ];
    let known = KNOWN.iter().find(|(preimage, _)| digest == Sha384::digest(preimage).as_slice());
    known
        .map(|(_, words)| *words)
        .or_else(|| EMPTY_VARIABLES.iter().find(|(head, name, _)| digest == empty_variable(head, name)).map(|(.., words)| *words))
}

const GLOBAL: [u8; 16] = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const SECURITY: [u8; 16] = [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// Vendor, name, words.
const EMPTY_VARIABLES: [([u8; 16], &str, &str); 5] = [
    (GLOBAL, "SecureBoot", "UEFI variable SecureBoot, empty"),
    (GLOBAL, "PK", "UEFI variable PK, empty"),
    (GLOBAL, "KEK", "UEFI variable KEK, empty"),
    (SECURITY, "db", "UEFI variable db, empty"),
    (SECURITY, "dbx", "UEFI variable dbx, empty"),
];

/// Digest of `UEFI_VARIABLE_DATA` without a value.
fn empty_variable(vendor: &[u8; 16], name: &str) -> Vec<u8> {
    let characters: u64 = name.chars().map(|_| 1).sum();
    let head = Sha384::new_with_prefix(vendor).chain_update(characters.to_le_bytes()).chain_update([0; 8]);
    name.encode_utf16().fold(head, |hasher, unit| hasher.chain_update(unit.to_le_bytes())).finalize().to_vec()
}
