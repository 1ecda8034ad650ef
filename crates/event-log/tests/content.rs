//! What payloads say: structures built by hand, each field by itself.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_event_log::{Content, Event, EventVersion, Guid};
use sha2::{Digest as _, Sha384};

const EV_EVENT_TAG: u32 = 6;
const EV_IPL: u32 = 13;
const EV_EFI_VARIABLE_BOOT: u32 = 0x8000_0002;
const EV_EFI_PLATFORM_FIRMWARE_BLOB: u32 = 0x8000_0008;
const EV_EFI_HANDOFF_TABLES: u32 = 0x8000_0009;
const EV_EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;
const EV_EFI_HANDOFF_TABLES2: u32 = 0x8000_000b;

fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let lengths = [(wide.len() as u64 / 2).to_le_bytes(), (data.len() as u64).to_le_bytes()].concat();
    [[0x11; 16].as_slice(), &lengths, &wide, data].concat()
}

fn meaning(name: &str, data: &[u8]) -> Option<String> {
    match Content::parse(EV_EFI_VARIABLE_BOOT, &variable(name, data)) {
        Content::Variable { meaning, .. } => meaning,
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_of_the_firmware_have_a_place_and_in_the_newer_form_a_name() {
    let place = [0xff80_0000_u64.to_le_bytes(), 0x8_4000_u64.to_le_bytes()].concat();
    let named = [b"\x04Boot".as_slice(), &place].concat();
    let firmware = |name: &str| Content::Firmware { name: name.to_owned(), base: 0xff80_0000, length: 0x8_4000 };

    assert_eq!(Content::parse(EV_EFI_PLATFORM_FIRMWARE_BLOB, &place), firmware(""));
    assert_eq!(Content::parse(EV_EFI_PLATFORM_FIRMWARE_BLOB2, &named), firmware("Boot"));
}

#[test]
fn tables_that_are_handed_over_are_listed_in_both_forms() {
    let table = [1_u64.to_le_bytes().as_slice(), &[0x22; 16], &0x1000_u64.to_le_bytes()].concat();
    let named = [b"\x08TdxTable".as_slice(), &table].concat();
    let tables = |name: &str| Content::HandoffTables { name: name.to_owned(), tables: vec![Guid([0x22; 16])] };

    assert_eq!(Content::parse(EV_EFI_HANDOFF_TABLES, &table), tables(""));
    assert_eq!(Content::parse(EV_EFI_HANDOFF_TABLES2, &named), tables("TdxTable"));
}

#[test]
fn a_tag_and_its_text_are_told_and_those_of_linux_in_words() {
    let tagged = |text: &[u8]| {
        let len = (text.len() as u32).to_le_bytes();
        Content::parse(EV_EVENT_TAG, &[0x8f3b_22ec_u32.to_le_bytes().as_slice(), &len, text].concat())
    };

    assert_eq!(tagged(b"Linux initrd\0"), Content::Tagged { tag: 0x8f3b_22ec, text: "Linux initrd".to_owned() });
    assert_eq!(tagged(b"Linux initrd\0").to_string(), "initrd");
    assert_eq!(tagged(b"LOADED_IMAGE::LoadOptions\0").to_string(), "kernel command line");
    assert_eq!(tagged(b"another text\0").to_string(), "\"another text\" (tag 0x8f3b22ec)");
}

#[test]
fn only_variables_named_like_boot_options_are_read_as_such() {
    let option = [1_u32.to_le_bytes().as_slice(), &0_u16.to_le_bytes(), b"S\0h\0e\0l\0l\0\0\0"].concat();

    assert_eq!(meaning("Boot00fF", &option).as_deref(), Some("Shell"));
    for name in ["Boot000", "Boot00001", "Bolt0001", "Boot00xy", "PlatLang"] {
        assert_eq!(meaning(name, &option), None, "{name}");
    }
}

#[test]
fn a_boot_order_is_a_list_of_bounded_length() {
    assert_eq!(meaning("BootOrder", &[1, 0, 0x34, 0x12, 9]).as_deref(), Some("0001, 1234"));
    assert_eq!(meaning("BootOrder", &[]).as_deref(), Some(""));
    let long = meaning("BootOrder", &[0; 4000]).unwrap();
    assert!((500..=512).contains(&long.len()), "{}", long.len());
}

#[test]
fn grub_measures_its_lines_with_or_without_their_end_and_prefix() {
    let is_measured = |payload: &[u8], measured: &[u8]| {
        let event = Event {
            imr: 1,
            event_type: EV_IPL,
            digest: Sha384::digest(measured).to_vec(),
            event: String::new(),
            event_payload: payload.to_vec(),
            version: EventVersion::V1,
        };
        event.payload_is_measured()
    };

    assert!(is_measured(b"grub_cmd: boot\0", b"grub_cmd: boot\0"));
    assert!(is_measured(b"grub_cmd: boot\0", b"grub_cmd: boot"));
    assert!(is_measured(b"grub_cmd: boot\0", b"boot"));
    assert!(!is_measured(b"grub_cmd: boot\0", b"another"));
    assert!(!is_measured(b"other_cmd: boot\0", b"boot"));
}
