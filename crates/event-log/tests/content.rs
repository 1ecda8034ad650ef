//! What payloads say: structures built by hand, each field by itself.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_event_log::{Content, Event, EventVersion, Guid, event_type_name};
use sha2::{Digest as _, Sha384};

/// Most nodes of a device path that are told.
const MAX_NODES: usize = 32;
const EV_EVENT_TAG: u32 = 6;
const EV_IPL: u32 = 13;
const EV_EFI_VARIABLE_BOOT: u32 = 0x8000_0002;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
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

/// TCG PC Client Platform Firmware Profile 1.06, table 27, and the type of runtime events.
#[test]
fn each_event_type_has_its_name() {
    let numbered = [
        (0x0000_0000, "PREBOOT_CERT POST_CODE - NO_ACTION SEPARATOR ACTION EVENT_TAG S_CRTM_CONTENTS S_CRTM_VERSION CPU_MICROCODE"),
        (
            0x0000_000a,
            "PLATFORM_CONFIG_FLAGS TABLE_OF_DEVICES COMPACT_HASH IPL IPL_PARTITION_DATA NONHOST_CODE NONHOST_CONFIG NONHOST_INFO",
        ),
        (0x0000_0012, "OMIT_BOOT_DEVICE_EVENTS POST_CODE2 -"),
        (0x8000_0001, "EFI_VARIABLE_DRIVER_CONFIG EFI_VARIABLE_BOOT EFI_BOOT_SERVICES_APPLICATION EFI_BOOT_SERVICES_DRIVER"),
        (0x8000_0005, "EFI_RUNTIME_SERVICES_DRIVER EFI_GPT_EVENT EFI_ACTION EFI_PLATFORM_FIRMWARE_BLOB EFI_HANDOFF_TABLES"),
        (0x8000_000a, "EFI_PLATFORM_FIRMWARE_BLOB2 EFI_HANDOFF_TABLES2 EFI_VARIABLE_BOOT2 EFI_GPT_EVENT2 -"),
        (0x8000_0010, "EFI_HCRTM_EVENT -"),
        (0x8000_00e0, "EFI_VARIABLE_AUTHORITY EFI_SPDM_FIRMWARE_BLOB EFI_SPDM_FIRMWARE_CONFIG -"),
    ];
    for (first, names) in numbered {
        for (number, name) in (first..).zip(names.split(' ')) {
            let expected = (name != "-").then(|| format!("EV_{name}"));
            assert_eq!(event_type_name(number), expected.as_deref(), "{number:#x}");
        }
    }
    assert_eq!(event_type_name(0x0800_0001), Some("dstack runtime event"));
}

fn guid(text: &str) -> Guid {
    let hex = hex::decode(text.replace('-', "")).unwrap();
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    Guid(order.map(|at: usize| hex[at]))
}

#[test]
fn guids_of_a_boot_are_told_in_words() {
    let meanings = [
        ("d719b2cb-3d3a-4596-a3bc-dad00e67656f", "UEFI image security database"),
        ("605dab50-e046-4300-abb6-3dd810dd8b23", "shim"),
        ("1428f772-b64a-441e-b8c3-9ebdd7f893c7", "files that QEMU passed (-kernel, -initrd)"),
        ("5568e427-68fc-4f3d-ac74-ca555231cc68", "Linux initrd"),
        ("f8d1c555-cd04-46b5-8a20-e56cbb3052d0", "kernel inside a unified kernel image"),
        ("f2fd1544-9794-4a2c-992e-e5bbcf20e394", "SMBIOS 3 table"),
        ("eb9d2d31-2d88-11d3-9a16-0090273fc14d", "SMBIOS table"),
    ];
    for (text, meaning) in meanings {
        assert_eq!((guid(text).to_string().as_str(), guid(text).meaning()), (text, Some(meaning)));
    }
}

/// An image of one byte, loaded from a device path of these nodes.
fn loaded_from(nodes: &[(u8, u8, &[u8])]) -> String {
    let path: Vec<u8> = nodes.iter().flat_map(|(kind, sub, body)| [&[*kind, *sub, body.len() as u8 + 4, 0], *body].concat()).collect();
    let numbers = [0_u64.to_le_bytes(), 1_u64.to_le_bytes(), 0_u64.to_le_bytes(), (path.len() as u64).to_le_bytes()].concat();
    match Content::parse(EV_EFI_BOOT_SERVICES_APPLICATION, &[numbers, path].concat()) {
        Content::Image { length: 1, path } => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_path_is_told_by_the_nodes_that_say_where_an_image_came_from() {
    let file = [0x22; 16];
    let end: (u8, u8, &[u8]) = (0x7f, 0xff, &[]);
    let volume = "firmware volume file 22222222-2222-2222-2222-222222222222";

    assert_eq!(loaded_from(&[(1, 1, &[2, 0x1f]), (4, 1, &[7, 0, 0, 0]), end]), "Pci(1f,2)/partition 7");
    assert_eq!(loaded_from(&[(4, 6, &file), (4, 7, &file), (4, 8, &file)]), format!("{volume}/{volume}"));
    assert_eq!(loaded_from(&[end, (4, 1, &[7, 0, 0, 0])]), "", "nothing behind the end");
    assert_eq!(loaded_from(&vec![(4, 1, [1, 0, 0, 0].as_slice()); MAX_NODES + 2]).matches("partition").count(), MAX_NODES);
}
