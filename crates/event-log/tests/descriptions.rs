//! What a person reads about a log.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_event_log::{Content, Event, EventLog, EventVersion, Guid, RuntimeEvent, describe, event_type_name};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/");

fn must_ccel(name: &str) -> EventLog {
    EventLog::parse_ccel(&std::fs::read(format!("{DATA}boot/{name}")).unwrap(), &[]).unwrap()
}

fn must_json(name: &str) -> EventLog {
    EventLog::parse_json(&std::fs::read_to_string(format!("{DATA}logs/{name}")).unwrap()).unwrap()
}

fn words(log: &EventLog) -> Vec<String> {
    (0..log.events().len()).map(|index| format!("{} {}", log.events()[index].imr, log.describe(index).unwrap())).collect()
}

#[test]
fn boot_of_a_dstack_guest_in_words() {
    insta::assert_snapshot!(words(&must_ccel("08e8363d55f4e4aa.bin")).join("\n"));
}

#[test]
fn boot_through_shim_and_grub_in_words() {
    insta::assert_snapshot!(words(&must_ccel("cab97131de63eb99.bin")).join("\n"));
}

#[test]
fn boot_of_other_firmware_in_words() {
    insta::assert_snapshot!(words(&must_ccel("d9cd052549c551fe.bin")).join("\n"));
}

#[test]
fn full_json_log_in_words() {
    insta::assert_snapshot!(words(&must_json("e473d06e1bd97a70.json")).join("\n"));
}

#[test]
fn stripped_log_is_told_by_place_and_known_digests() {
    insta::assert_snapshot!(words(&must_json("15eb6886c63e07f0.json")).join("\n"));
}

#[test]
fn divergence_in_words() {
    let log = must_json("e473d06e1bd97a70.json");
    let changed = |index: usize| {
        let mut reference = log.events().to_vec();
        reference[index].digest = vec![0xab; 48];
        log.first_divergence(&reference, 0..4).unwrap().to_string()
    };
    let shorter = log.first_divergence(&log.events()[..27], 0..4).unwrap().to_string();
    let longer = EventLog::new(log.events()[..27].to_vec()).unwrap().first_divergence(log.events(), 0..4).unwrap().to_string();

    insta::assert_snapshot!([changed(0), changed(10), changed(16), shorter, longer].join("\n"));
}

#[test]
fn divergence_tells_both_places() {
    let log = must_json("e473d06e1bd97a70.json");
    let mut reference = log.events().to_vec();
    reference.insert(0, RuntimeEvent::new("first", b"".to_vec(), EventVersion::V1).to_event());

    let divergence = log.first_divergence(&reference, 0..4).unwrap();

    assert_eq!((divergence.register, divergence.position), (3, 0));
    let (found, expected) = (divergence.found.unwrap(), divergence.expected.unwrap());
    assert_eq!((found.index, found.description.as_str()), (20, "runtime event system-preparing"));
    assert_eq!((expected.index, expected.description.as_str()), (0, "runtime event first"));
    assert_eq!(found.digest.unwrap(), log.events()[20].digest.as_slice());
}

#[test]
fn name_given_by_a_reference_goes_first() {
    let named = Event { event_payload: b"ACPI DATA".to_vec(), ..Event::boot(0, 10, &[1; 48], "ACPI tables") };

    assert_eq!(describe(std::slice::from_ref(&named), 0).unwrap(), "ACPI tables (EV_PLATFORM_CONFIG_FLAGS)");
    assert_eq!(describe(&[named], 1), None);
}

#[test]
fn place_alone_names_nothing_in_a_boot_of_another_shape() {
    let acpi = |payload: &[u8]| Event { event_payload: payload.to_vec(), ..Event::boot(0, 10, &[1; 48], "") };
    let four = vec![acpi(b"ACPI DATA"), acpi(b"ACPI DATA"), acpi(b"ACPI DATA"), acpi(b"ACPI DATA")];
    let menu = b"QEMU FW CFG\0BootMenu\0\0";
    let three_and_others = vec![acpi(menu), acpi(b"ACPI DATA"), acpi(b"ACPI DATA"), acpi(b"ACPI DATA")];
    let two_images = vec![Event::boot(1, 0x8000_0003, &[1; 48], ""), Event::boot(1, 0x8000_0003, &[1; 48], "")];

    assert_eq!(describe(&four, 0).unwrap(), "\"ACPI DATA\" (EV_PLATFORM_CONFIG_FLAGS)");
    assert_eq!(describe(&three_and_others, 0).unwrap(), "\"QEMU FW CFG BootMenu\" (EV_PLATFORM_CONFIG_FLAGS)");
    assert_eq!(describe(&three_and_others, 1).unwrap(), "ACPI table loader (EV_PLATFORM_CONFIG_FLAGS)");
    assert_eq!(describe(&two_images, 0).unwrap(), "EV_EFI_BOOT_SERVICES_APPLICATION");
}

#[test]
fn only_the_first_of_its_type_and_two_of_the_stub_are_named_by_place() {
    let twice = |imr, event_type| vec![Event::boot(imr, event_type, &[1; 48], ""); 2];
    let second = |events: Vec<Event>| (describe(&events, 0).unwrap(), describe(&events, 1).unwrap());

    let (first, other) = second(twice(0, 0x8000_000b));
    assert!(first.starts_with("TD HOB") && other == "EV_EFI_HANDOFF_TABLES2", "{other}");
    let (first, other) = second(twice(0, 0x8000_000a));
    assert!(first.starts_with("firmware's variable store") && other == "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "{other}");
    let stub = twice(2, 6);
    assert!(describe(&stub, 0).unwrap().starts_with("kernel command line") && describe(&stub, 1).unwrap().starts_with("initrd"));
    let three = [stub.clone(), stub[..1].to_vec()].concat();
    assert_eq!(describe(&three, 0).unwrap(), "EV_EVENT_TAG");
}

#[test]
fn payload_is_proven_where_the_digest_covers_it() {
    let log = must_ccel("090dc18758380a5c.bin");
    let measured: Vec<usize> = (0..log.events().len()).filter(|index| log.events()[*index].payload_is_measured()).collect();

    // Secure boot variables, separators, boot options, partition table, authorities, GRUB's commands and the kernel's command line.
    let grub: Vec<usize> = (25..=38).collect();
    let expected = [[2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 20, 21].as_slice(), &grub, &[40, 41, 42]].concat();
    assert_eq!(measured, expected);
}

#[test]
fn swapped_payload_is_not_proven() {
    let log = must_ccel("090dc18758380a5c.bin");
    for index in [2, 11, 25, 40] {
        let mut event = log.events()[index].clone();
        assert!(event.payload_is_measured(), "{index}");
        *event.event_payload.last_mut().unwrap() ^= 1;
        event.event_payload[0] ^= 1;

        assert!(!event.payload_is_measured(), "{index}");
    }
    let mut runtime = RuntimeEvent::new("app-id", vec![1; 20], EventVersion::V1).to_event();
    assert!(runtime.payload_is_measured());
    runtime.event_payload[0] = 2;
    assert!(!runtime.payload_is_measured());
}

#[test]
fn typed_contents() {
    let log = must_ccel("090dc18758380a5c.bin");
    let content = |index: usize| log.events()[index].content();

    assert!(matches!(content(1), Content::Firmware { base: 0xffe0_0000, length: 0x2_0000, .. }));
    assert!(
        matches!(content(2), Content::Variable { ref name, length: 1, ref meaning, .. } if name == "SecureBoot" && meaning.as_deref() == Some("off"))
    );
    assert!(matches!(content(11), Content::Variable { ref meaning, .. } if meaning.as_deref() == Some("0001, 0000")));
    assert!(matches!(content(12), Content::Variable { ref meaning, .. } if meaning.as_deref().unwrap().starts_with("UEFI nvme_card")));
    assert!(matches!(content(16), Content::PartitionTable { ref partitions, .. } if partitions.len() == 12));
    assert!(matches!(content(17), Content::Image { length: 924_688, .. }));
    assert_eq!(content(7), Content::Separator { error: false });
    assert_eq!(Content::parse(4, &[1, 0, 0, 0]), Content::Separator { error: true });
    assert_eq!(Content::parse(4, &[0xff; 4]), Content::Separator { error: false });
    assert_eq!(Content::parse(4, &[0; 5]), Content::Opaque { length: 5 });
}

#[test]
fn payload_that_is_no_text_is_counted() {
    assert_eq!(Content::parse(10, &[1, 2, 3]), Content::Opaque { length: 3 });
    assert_eq!(Content::parse(10, b"").to_string(), "no payload in the log");
    assert_eq!(Content::parse(10, b"td_hob\0\0\x01\x02"), Content::Text("td_hob".to_owned()));
    assert_eq!(Content::parse(10, b"td\0\x01\x02"), Content::Opaque { length: 5 });
    assert_eq!(Content::parse(13, b".\0c\0m\0d\0\0\0"), Content::Text(".cmd".to_owned()));
}

#[test]
fn long_and_hostile_text_stays_one_short_line() {
    let long = Content::parse(13, &[b'a'; 5_000]).to_string();
    let hostile = RuntimeEvent::new("\u{1b}[2J\nname", b"\x1b[31m".to_vec(), EventVersion::V1).to_event();

    assert_eq!(long.len(), 514);
    assert_eq!(hostile.content().to_string(), ".[2J.name = 1b5b33316d");
    assert_eq!(Content::parse(5, b"one\ntwo"), Content::Action("one.two".to_owned()));
}

#[test]
fn guid_prints_in_the_usual_order() {
    let guid = Guid([0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);

    assert_eq!(guid.to_string(), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
    assert_eq!(guid.meaning(), Some("UEFI global variable"));
    assert_eq!(Guid([0; 16]).meaning(), None);
}

#[test]
fn event_types_have_their_names() {
    assert_eq!(event_type_name(0x8000_0002), Some("EV_EFI_VARIABLE_BOOT"));
    assert_eq!(event_type_name(0x7777_7777), None);
}
