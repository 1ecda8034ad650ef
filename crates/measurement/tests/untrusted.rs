//! Crafted and random inputs: an answer, never a panic.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_measurement::checksum::{ChecksumError, ChecksumFile, binding_line, os_image_hash};
use dstack_measurement::mrtd::mrtd;
use dstack_measurement::td_hob::{TdHobError, TdHobWitness};
use dstack_measurement::tdvf::{SectionKind, Tdvf, TdvfError};
use dstack_measurement::tdx::ImageMeasurement;
use dstack_measurement::{PageAddOrder, QemuVersion, ShapeError, VmShape, authenticode, sha384};
use proptest::prelude::*;

const PAGE: usize = 4096;
/// Distance of the descriptor from the end of [`firmware`].
const DESCRIPTOR_DISTANCE: usize = 1024;

#[derive(Clone, Copy)]
struct RawSection {
    data_at: u32,
    data_len: u32,
    gpa: u64,
    memory_len: u64,
    kind: u32,
    attributes: u32,
}

const CODE: RawSection = RawSection { data_at: 0, data_len: PAGE as u32, gpa: 0xffff_e000, memory_len: 0x1000, kind: 0, attributes: 1 };
const STORE: RawSection = RawSection { data_at: 0, data_len: PAGE as u32, gpa: 0xffff_d000, memory_len: 0x1000, kind: 1, attributes: 0 };
const HOB: RawSection = RawSection { data_at: 0, data_len: 0, gpa: 0x80_9000, memory_len: 0x2000, kind: 2, attributes: 0 };
const TEMP: RawSection = RawSection { data_at: 0, data_len: 0, gpa: 0x80_b000, memory_len: 0x2000, kind: 3, attributes: 0 };

/// Two pages of firmware that end in the tables of a TDVF.
fn firmware(sections: &[RawSection]) -> Vec<u8> {
    let mut image: Vec<u8> = (0..2 * PAGE).map(|index| index as u8).collect();
    let mut descriptor = b"TDVF".to_vec();
    for value in [16 + 32 * sections.len() as u32, 1, sections.len() as u32] {
        descriptor.extend(value.to_le_bytes());
    }
    for section in sections {
        descriptor.extend([section.data_at.to_le_bytes(), section.data_len.to_le_bytes()].concat());
        descriptor.extend([section.gpa.to_le_bytes(), section.memory_len.to_le_bytes()].concat());
        descriptor.extend([section.kind.to_le_bytes(), section.attributes.to_le_bytes()].concat());
    }
    let at = image.len() - DESCRIPTOR_DISTANCE;
    image[at..at + descriptor.len()].copy_from_slice(&descriptor);

    let metadata_guid = hex::decode("35657ae44a989847865e4685a7bf8ec2").unwrap();
    let footer_guid = hex::decode("de82b596b21ff745baeaa366c55a082d").unwrap();
    let entry = [(DESCRIPTOR_DISTANCE as u32).to_le_bytes().as_slice(), &22_u16.to_le_bytes(), &metadata_guid].concat();
    let footer = [40_u16.to_le_bytes().as_slice(), &footer_guid].concat();
    let table = [entry, footer].concat();
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

fn parse_error(sections: &[RawSection]) -> TdvfError {
    Tdvf::parse(&firmware(sections)).unwrap_err()
}

#[test]
fn mrtd_is_the_hash_of_the_module_calls() {
    let image = firmware(&[CODE, TEMP]);
    let record = |name: &[u8], gpa: u64| {
        let mut record = [0_u8; 128];
        record[..name.len()].copy_from_slice(name);
        record[16..24].copy_from_slice(&gpa.to_le_bytes());
        record
    };
    let mut calls = record(b"MEM.PAGE.ADD", CODE.gpa).to_vec();
    for chunk in 0..16 {
        calls.extend(record(b"MR.EXTEND", CODE.gpa + 256 * chunk as u64));
        calls.extend(&image[256 * chunk..256 * (chunk + 1)]);
    }
    calls.extend(record(b"MEM.PAGE.ADD", TEMP.gpa));
    calls.extend(record(b"MEM.PAGE.ADD", TEMP.gpa + 0x1000));

    let tdvf = Tdvf::parse(&image).unwrap();

    assert_eq!(mrtd(&tdvf, PageAddOrder::SinglePass), sha384(&calls));
    assert_eq!(mrtd(&tdvf, PageAddOrder::TwoPass), sha384(&calls), "one measured page: both orders are the same");
}

#[test]
fn memory_beyond_the_data_is_measured_as_zeros() {
    let short = RawSection { data_len: 100, ..CODE };
    let image = firmware(&[short]);
    let mut zeroed = image.clone();
    zeroed[100..PAGE].fill(0);

    let of_short = mrtd(&Tdvf::parse(&image).unwrap(), PageAddOrder::SinglePass);
    let full = firmware(&[CODE]);
    let mut full_zeroed = full.clone();
    full_zeroed[100..PAGE].fill(0);

    assert_eq!(of_short, mrtd(&Tdvf::parse(&full_zeroed).unwrap(), PageAddOrder::SinglePass));
    assert_ne!(of_short, mrtd(&Tdvf::parse(&full).unwrap(), PageAddOrder::SinglePass));
}

#[test]
fn augmented_pages_are_not_added() {
    let augmented = RawSection { attributes: 2, ..TEMP };
    let with = firmware(&[CODE, augmented]);
    let without = firmware(&[CODE]);

    let with = mrtd(&Tdvf::parse(&with).unwrap(), PageAddOrder::SinglePass);

    assert_eq!(with, mrtd(&Tdvf::parse(&without).unwrap(), PageAddOrder::SinglePass));
}

#[test]
fn crafted_sections_are_refused() {
    let bad = |section| matches!(parse_error(&[section]), TdvfError::BadSection { index: 0, .. });

    assert!(bad(RawSection { gpa: 1, ..CODE }), "unaligned address");
    assert!(bad(RawSection { memory_len: 0x1001, ..CODE }), "unaligned length");
    assert!(bad(RawSection { memory_len: 0, ..HOB }), "empty");
    assert!(bad(RawSection { gpa: u64::MAX - 0xfff, memory_len: 0x2000, ..CODE }), "wraps around");
    assert!(bad(RawSection { data_at: u32::MAX, ..CODE }), "data outside");
    assert!(bad(RawSection { data_len: 2 * PAGE as u32, ..CODE }), "data longer than memory");
    assert!(bad(RawSection { memory_len: 1 << 40, ..CODE }), "too much memory to measure");
    assert!(bad(RawSection { attributes: 4, ..CODE }), "unknown attribute");
    assert_eq!(parse_error(&[RawSection { kind: 7, ..CODE }]), TdvfError::UnsupportedSection { index: 0, kind: 7 });
    assert!(matches!(parse_error(&[CODE, TEMP, CODE]), TdvfError::BadSection { index: 2, .. }), "overlap");
    assert!(matches!(parse_error(&[]), TdvfError::BadDescriptor { .. }));
}

#[test]
fn crafted_tables_are_refused() {
    let good = firmware(&[CODE, HOB]);
    let end = good.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        Tdvf::parse(&image).unwrap_err()
    };

    assert!(Tdvf::parse(&good).is_ok());
    assert_eq!(with(end - 48, &[0]), TdvfError::NoTable);
    assert_eq!(with(end - 50, &[0, 0]), TdvfError::NoTable, "table shorter than its footer");
    assert_eq!(with(end - 50, &[0xff, 0xff]), TdvfError::NoTable, "table longer than the image");
    assert_eq!(with(end - 50, &[18, 0]), TdvfError::NoTdxMetadata, "no entries");
    assert!(matches!(with(end - 68, &[0, 0]), TdvfError::BadEntry { len: 0, .. }), "entry of length zero");
    assert!(matches!(with(end - 68, &[200, 0]), TdvfError::BadEntry { len: 200, .. }), "entry longer than the table");
    assert_eq!(with(end - 66, &[0]), TdvfError::NoTdxMetadata, "another GUID");
    assert!(matches!(with(end - 72, &[0xff; 4]), TdvfError::BadDescriptor { .. }), "descriptor before the image");
    assert!(matches!(with(end - 72, &[8, 0, 0, 0]), TdvfError::BadDescriptor { .. }), "descriptor cut off");
    let descriptor = end - DESCRIPTOR_DISTANCE;
    for (at, what) in [(0, "signature"), (4, "length"), (8, "version"), (12, "count")] {
        assert!(matches!(with(descriptor + at, &[0x51]), TdvfError::BadDescriptor { .. }), "{what}");
    }
    assert_eq!(Tdvf::parse(&[]), Err(TdvfError::NoTable));
    assert_eq!(Tdvf::parse(&vec![0; 65 << 20]), Err(TdvfError::TooLarge { len: 65 << 20 }));
}

#[test]
fn only_a_section_that_is_alone_is_the_section() {
    let image = firmware(&[HOB, TEMP, RawSection { gpa: 0x90_0000, ..TEMP }]);
    let tdvf = Tdvf::parse(&image).unwrap();

    assert!(tdvf.only(SectionKind::TdHob).is_some());
    assert!(tdvf.only(SectionKind::TemporaryMemory).is_none());
    assert!(tdvf.only(SectionKind::BootFirmwareVolume).is_none());
    let without_hob = firmware(&[CODE, STORE]);
    assert_eq!(TdHobWitness::from_tdvf(&Tdvf::parse(&without_hob).unwrap()), Err(TdHobError::NoHobSection));
}

#[test]
fn the_hand_off_list_covers_all_memory_once() {
    let image = firmware(&[HOB, TEMP]);
    let witness = TdHobWitness::from_tdvf(&Tdvf::parse(&image).unwrap()).unwrap();
    for (memory, above) in [(1_u64 << 30, 0), (0xb000_0000, 0x3000_0000), (8 << 30, 6 << 30)] {
        let list = witness.td_hob(memory).unwrap();

        let resources: Vec<(u32, u64, u64)> = list[56..]
            .chunks(48)
            .map(|hob| {
                let number = |at: usize| u64::from_le_bytes(hob[at..at + 8].try_into().unwrap());
                (u32::from_le_bytes(hob[24..28].try_into().unwrap()), number(32), number(40))
            })
            .collect();
        assert_eq!(resources.iter().map(|(_, _, len)| len).sum::<u64>(), memory);
        assert_eq!(resources.iter().filter(|(kind, ..)| *kind == 0).count(), 2);
        assert_eq!(resources.last().filter(|(_, start, _)| *start == 1 << 32).map_or(0, |(_, _, len)| *len), above);
        assert!(resources.windows(2).all(|pair| pair[0].1 + pair[0].2 <= pair[1].1), "sorted and disjoint");
        let end = u64::from_le_bytes(list[48..56].try_into().unwrap());
        assert_eq!(end, 0x80_9000 + list.len() as u64 + 8);
    }
}

#[test]
fn accepted_memory_must_be_inside_the_vm() {
    let witness = TdHobWitness::decode(&hex::decode("80100904000609020b021010").unwrap()).unwrap();

    assert!(witness.td_hob(64 << 20).is_ok());
    assert!(matches!(witness.td_hob(8 << 20), Err(TdHobError::BadRange { .. })));
}

#[test]
fn witnesses_in_another_form_are_refused() {
    let refused = |hex: &str| matches!(TdHobWitness::decode(&hex::decode(hex).unwrap()), Err(TdHobError::BadWitness { .. }));

    assert!(!refused("80100904000609020b021010"));
    assert!(refused(""), "empty");
    assert!(refused("80100904000609020b0210"), "cut off");
    assert!(refused("80100904000609020b02101000"), "trailing");
    assert!(refused("8010090409020006 0b021010".replace(' ', "").as_str()), "out of order");
    assert!(refused("80100904000a09020b021010"), "overlapping");
    assert!(refused("80100904000609020b021000"), "empty range");
    assert!(refused("80100904010609020b021010"), "base is not the first range");
    assert!(refused("80100804000609020b021010"), "list is not in a range");
    assert!(refused("8090000904000609020b021010"), "number not in its shortest form");
    assert!(refused("ffffffffffffffffff010900"), "number too long");
    assert!(refused("801009ff7f"), "too many ranges");
}

#[test]
fn checksum_files_have_one_grammar() {
    let digest = "0".repeat(64);
    let line = |name: &str| format!("{digest}  {name}\n");
    let parse = |text: String| ChecksumFile::parse(text.as_bytes());

    assert!(parse(line("ovmf.fd") + &line("initramfs.cpio.zst")).is_ok());
    assert!(parse(line("a").trim_end().to_owned()).is_ok());
    assert_eq!(parse(line("a") + &line("b") + &line("a")), Err(ChecksumError::Duplicate { name: "a".to_owned() }));
    for bad in
        ["", "\n", "a b\n", &format!("{digest} a\n"), &format!("{digest}  \n"), &format!("{digest}  ../a\n"), &format!("{digest}  a/b\n")]
    {
        assert_eq!(parse(bad.to_owned()), Err(ChecksumError::BadLine { line: 1 }), "{bad:?}");
    }
    assert_eq!(parse(line("a") + "\n"), Err(ChecksumError::BadLine { line: 2 }));
    assert_eq!(parse(format!("{}  a\n", "A".repeat(64))), Err(ChecksumError::BadLine { line: 1 }));
    assert!(matches!(parse("a".repeat(70_000)), Err(ChecksumError::TooLarge { .. })));
    let bound = binding_line("x", b"content");
    let file = ChecksumFile::parse(bound.as_bytes()).unwrap();
    assert!(file.check_file("x", b"content").is_ok());
    assert!(matches!(file.check_file("x", b"other"), Err(ChecksumError::Mismatch { .. })));
    assert!(matches!(file.check_file("y", b"content"), Err(ChecksumError::Missing { .. })));
    assert!(file.check_image(&os_image_hash(bound.as_bytes())).is_ok());
    assert!(matches!(file.check_image(&os_image_hash(b"")), Err(ChecksumError::OtherImage { .. })));
}

#[test]
fn shapes_outside_the_range_are_refused() {
    let version = QemuVersion::new(9, 1, 0);

    assert_eq!(VmShape::new(0, 1 << 31, version), Err(ShapeError::CpuCount(0)));
    assert_eq!(VmShape::new(5000, 1 << 31, version), Err(ShapeError::CpuCount(5000)));
    assert_eq!(VmShape::new(1, (1 << 31) + 1, version), Err(ShapeError::Memory((1 << 31) + 1)));
    assert_eq!(VmShape::new(1, 0, version), Err(ShapeError::Memory(0)));
    assert_eq!(VmShape::new(1, u64::MAX - 0xf_ffff, version), Err(ShapeError::Memory(u64::MAX - 0xf_ffff)));
    assert_eq!(VmShape::new(1, 1 << 31, QemuVersion::new(7, 2, 0)), Err(ShapeError::QemuTooOld(QemuVersion::new(7, 2, 0))));
}

#[test]
fn the_qemu_version_selects_pic_and_page_order() {
    let shape = |version: &str| VmShape::new(1, 1 << 31, version.parse().unwrap()).unwrap();

    assert_eq!((shape("8.2.2").pic, shape("8.2.2").page_add_order), (true, PageAddOrder::TwoPass));
    assert_eq!((shape("9.0").pic, shape("9.0").page_add_order), (false, PageAddOrder::SinglePass));
    for bad in ["", "9", "9.", "9.1.2.3", "9.1-rc1", "+9.1", "99999.1", "a.b"] {
        assert!(matches!(bad.parse::<QemuVersion>(), Err(ShapeError::QemuVersion(_))), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn random_documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = ImageMeasurement::decode(&bytes);
        let _ = ChecksumFile::parse(&bytes);
        let _ = TdHobWitness::decode(&bytes);
        let _ = authenticode::sha384(&bytes);
        let _ = Tdvf::parse(&bytes);
    }

    #[test]
    fn a_witness_that_decodes_encodes_to_itself(bytes in proptest::collection::vec(0_u8..0x20, 5..30)) {
        if let Ok(witness) = TdHobWitness::decode(&bytes) {
            prop_assert_eq!(witness.encode(), bytes);
            let _ = witness.td_hob(1 << 31);
        }
    }

    #[test]
    fn damaged_firmware_never_panics(changes in proptest::collection::vec((0_usize..1100, any::<u8>()), 1..12)) {
        let mut image = firmware(&[CODE, STORE, HOB, TEMP]);
        for (distance, byte) in changes {
            let at = image.len() - 1 - distance;
            image[at] = byte;
        }
        if let Ok(tdvf) = Tdvf::parse(&image) {
            let _ = TdHobWitness::from_tdvf(&tdvf).map(|witness| witness.td_hob(1 << 31));
            if tdvf.sections().iter().map(|section| section.memory_len).sum::<u64>() < 1 << 20 {
                let _ = mrtd(&tdvf, PageAddOrder::TwoPass);
            }
        }
    }
}
