//! SEV-SNP launch digests: against an independent program over many parameters, and against a genuine report.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use std::path::Path;

use dstack_manifest::{OsImageHash, SnpMeasurementDocument};
use dstack_measurement::DocumentFormatError;
use dstack_measurement::checksum::{ChecksumError, binding_line, os_image_hash};
use dstack_measurement::snp::{
    CpuSignature, GuestFeatures, KernelHashes, Section, SectionKind, SevFirmware, SevFirmwareError, SnpDocumentError, SnpImageFiles,
    SnpImageMeasurement, SnpLaunchError, SnpShape, Vmm, launch_digest, ovmf_hash,
};
use proptest::prelude::*;
use serde_json::Value;

const AMD_SEV: &str = "ovmf_AmdSev_suffix.bin";
const PLAIN: &str = "ovmf_OvmfX64_suffix.bin";
/// GUIDs of three entries, in memory order.
const LIST_GUID: &str = "666588dc4a989847a75e5585a7bf67cc";
const HASHES_GUID: &str = "1f3755723b3a044b927b1da6efa8d454";
const RESET_GUID: &str = "de71f7007e1acb4f890e68c77e2fb44e";

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/snp").join(name)).unwrap()
}

fn must_json(name: &str) -> Value {
    serde_json::from_slice(&must_read(name)).unwrap()
}

fn must_bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn must_find(haystack: &[u8], needle: &str) -> usize {
    let needle = hex::decode(needle).unwrap();
    haystack.windows(needle.len()).rposition(|window| window == needle).unwrap()
}

fn image(firmware: &[u8]) -> SnpImageMeasurement {
    SnpImageMeasurement::from_files(&SnpImageFiles { firmware, kernel: b"a kernel", initrd: b"an initrd", cmdline: "quiet" }).unwrap()
}

/// The document of `image` with its `ovmf_hash` replaced.
fn with_ovmf_hash(image: &SnpImageMeasurement, from: &[u8], to: &[u8]) -> SnpImageMeasurement {
    let mut bytes = image.encode();
    let at = must_find(&bytes, &hex::encode(from));
    bytes[at..at + to.len()].copy_from_slice(to);
    SnpImageMeasurement::decode(&bytes).unwrap()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn launch_digests_are_those_of_sev_snp_measure() {
    let table = must_json("sev-snp-measure.json");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 117);
    for (index, row) in rows.iter().enumerate() {
        let bytes = must_read(row["firmware"].as_str().unwrap());
        let firmware = SevFirmware::parse(&bytes).unwrap();
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let kernel =
            row.get("kernel").map(|_| KernelHashes::from_files(text("kernel").as_bytes(), text("initrd").as_bytes(), text("cmdline")));
        let vmm = match text("vmm") {
            "qemu" => Vmm::Qemu,
            "ec2" => Vmm::Ec2,
            _ => Vmm::Gce,
        };
        let features = GuestFeatures::new(row["guest_features"].as_u64().unwrap()).unwrap();
        let shape = SnpShape {
            guest_features: features,
            vmm,
            ..SnpShape::new(number(&row["vcpus"]), text("cpu").parse::<CpuSignature>().unwrap())
        };

        let digest = match row.get("ovmf_hash") {
            None => launch_digest(&firmware, kernel.as_ref(), &shape).unwrap(),
            Some(hash) => {
                let files = SnpImageFiles {
                    firmware: &bytes,
                    kernel: text("kernel").as_bytes(),
                    initrd: text("initrd").as_bytes(),
                    cmdline: text("cmdline"),
                };
                let image = SnpImageMeasurement::from_files(&files).unwrap();
                with_ovmf_hash(&image, &ovmf_hash(&firmware), &must_bytes(hash)).launch_digest(&shape).unwrap()
            }
        };

        assert_eq!(hex::encode(digest), text("digest"), "row {index}: {row}");
    }
    for name in [AMD_SEV, PLAIN] {
        let bytes = must_read(name);
        assert_eq!(ovmf_hash(&SevFirmware::parse(&bytes).unwrap()).as_slice(), must_bytes(&table["ovmf_hash"][name]), "{name}");
    }
}

#[test]
fn launch_digests_are_those_of_the_tools_own_tests() {
    for vector in must_json("launch-digests.json")["vectors"].as_array().unwrap() {
        let bytes = must_read(vector["ovmf"].as_str().unwrap());
        let firmware = SevFirmware::parse(&bytes).unwrap();
        let features = GuestFeatures::new(vector["guest_features"].as_u64().unwrap()).unwrap();
        let cpu = CpuSignature::from_value(number(&vector["vcpu_sig"]));
        let shape = SnpShape { guest_features: features, ..SnpShape::new(number(&vector["vcpus"]), cpu) };
        let cmdline = vector["append"].as_str();
        let hash = vector["extra"]["snp_ovmf_hash_str"].as_str().filter(|hash| !hash.is_empty());

        let digest = match (cmdline, hash) {
            (Some(cmdline), Some(hash)) => {
                let files = SnpImageFiles { firmware: &bytes, kernel: b"", initrd: b"", cmdline };
                let image = SnpImageMeasurement::from_files(&files).unwrap();
                with_ovmf_hash(&image, &ovmf_hash(&firmware), &hex::decode(hash).unwrap()).launch_digest(&shape).unwrap()
            }
            (cmdline, _) => {
                let kernel = cmdline.map(|cmdline| KernelHashes::from_files(b"", b"", cmdline));
                launch_digest(&firmware, kernel.as_ref(), &shape).unwrap()
            }
        };

        assert_eq!(hex::encode(digest), vector["digest"].as_str().unwrap(), "{}", vector["test"]);
    }
}

fn must_genuine() -> (SnpMeasurementDocument, OsImageHash, [u8; 48]) {
    let genuine = must_json("genuine.json");
    let document = serde_json::from_str(genuine["sev_snp_measurement"].as_str().unwrap()).unwrap();
    let hash = genuine["os_image_hash"].as_str().unwrap().parse().unwrap();
    (document, hash, must_bytes(&genuine["launch_digest"]).try_into().unwrap())
}

#[test]
fn document_of_a_genuine_vm_gives_the_measurement_of_its_report() {
    let (document, os_image_hash, measurement) = must_genuine();

    let (image, shape) = SnpImageMeasurement::from_bound_document(&document, &os_image_hash).unwrap();

    assert_eq!(shape, SnpShape::new(2, CpuSignature::EPYC));
    assert_eq!(image.launch_digest(&shape), Ok(measurement));
    assert_eq!(image.encode(), document.measurement);
    assert_eq!(image.checksum_line().into_bytes(), document.checksum_file);
    assert!(image.cmdline().starts_with("console=ttyS0 init=/init "));
    assert_eq!(image.find_shape(&measurement, 8), Some(shape));
}

#[test]
fn other_shapes_give_other_digests_and_are_named() {
    let (document, os_image_hash, measurement) = must_genuine();
    let (image, shape) = SnpImageMeasurement::from_bound_document(&document, &os_image_hash).unwrap();
    let others = [
        SnpShape { vcpus: 3, ..shape },
        SnpShape { cpu: CpuSignature::GENOA, ..shape },
        SnpShape { guest_features: GuestFeatures::SNP_DEBUG_SWAP, ..shape },
    ];
    for other in others {
        let digest = image.launch_digest(&other).unwrap();
        assert_ne!(digest, measurement, "{other:?}");
        assert_eq!(image.find_shape(&digest, 3), Some(other));
        assert_eq!(image.find_shape(&digest, other.vcpus - 1), None, "only up to the limit");
    }
    assert_eq!(image.find_shape(&[7; 48], 4), None);
    let unusual = SnpShape { vmm: Vmm::Ec2, ..shape };
    assert_eq!(image.find_shape(&image.launch_digest(&unusual).unwrap(), 4), None);
}

#[test]
fn document_of_another_image_or_shape_is_refused() {
    let (document, os_image, _) = must_genuine();
    let refuse = |document: &SnpMeasurementDocument| SnpImageMeasurement::from_bound_document(document, &os_image).unwrap_err();

    let other_image = SnpMeasurementDocument { checksum_file: b"\n".to_vec(), ..document.clone() };
    assert!(matches!(refuse(&other_image), SnpDocumentError::Format(DocumentFormatError::NotBound(ChecksumError::BadLine { .. }))));
    let other_list = SnpMeasurementDocument { checksum_file: binding_line("measurement.snp.cbor", b"x").into_bytes(), ..document.clone() };
    assert!(matches!(refuse(&other_list), SnpDocumentError::Format(DocumentFormatError::NotBound(ChecksumError::OtherImage { .. }))));
    let mut changed = document.clone();
    changed.measurement[20] ^= 1;
    assert!(matches!(refuse(&changed), SnpDocumentError::Format(DocumentFormatError::NotBound(ChecksumError::Mismatch { .. }))));
    let other_name = binding_line("measurement.tdx.cbor", &document.measurement).into_bytes();
    let renamed = SnpMeasurementDocument { checksum_file: other_name.clone(), ..document.clone() };
    let refused = SnpImageMeasurement::from_bound_document(&renamed, &os_image_hash(&other_name)).unwrap_err();
    assert!(matches!(refused, SnpDocumentError::Format(DocumentFormatError::NotBound(ChecksumError::Missing { .. }))));
    let unknown_cpu = SnpMeasurementDocument { vcpu_type: Some("host".into()), ..document.clone() };
    assert!(matches!(refuse(&unknown_cpu), SnpDocumentError::Cpu(_)));
    let without_snp = SnpMeasurementDocument { guest_features: 0x20, ..document.clone() };
    assert_eq!(refuse(&without_snp), SnpDocumentError::Features(SnpLaunchError::NotSnp(0x20)));
}

#[test]
fn a_configuration_without_a_cpu_model_means_epyc() {
    let (document, os_image_hash, _) = must_genuine();
    for vcpu_type in [None, Some(String::new())] {
        let document = SnpMeasurementDocument { vcpu_type, ..document.clone() };
        let (_, shape) = SnpImageMeasurement::from_bound_document(&document, &os_image_hash).unwrap();
        assert_eq!(shape.cpu, CpuSignature::EPYC);
    }
}

#[test]
fn document_is_read_in_its_one_encoding_only() {
    let bytes = must_genuine().0.measurement;

    let mut version_2 = bytes.clone();
    version_2[9] = 2;
    assert_eq!(SnpImageMeasurement::decode(&version_2), Err(SnpDocumentError::Format(DocumentFormatError::UnsupportedVersion(2))));
    let trailing = [bytes.as_slice(), &[0]].concat();
    assert_eq!(SnpImageMeasurement::decode(&trailing), Err(SnpDocumentError::Format(DocumentFormatError::NotDeterministic)));
    let mut long_number = bytes.clone();
    long_number.splice(9..10, [0x18, 3]);
    assert_eq!(SnpImageMeasurement::decode(&long_number), Err(SnpDocumentError::Format(DocumentFormatError::NotDeterministic)));
    let long = vec![0; (16 << 10) + 1];
    assert_eq!(
        SnpImageMeasurement::decode(&long),
        Err(SnpDocumentError::Format(DocumentFormatError::TooLarge { len: long.len(), limit: 16 << 10 }))
    );
    let mut unknown = bytes.clone();
    unknown[11] = b'x';
    assert!(matches!(SnpImageMeasurement::decode(&unknown), Err(SnpDocumentError::Format(DocumentFormatError::Malformed(_)))));
    for len in 0..bytes.len() {
        assert!(SnpImageMeasurement::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn a_command_line_with_a_nul_is_refused() {
    let firmware = must_read(AMD_SEV);
    let files = SnpImageFiles { firmware: &firmware, kernel: b"", initrd: b"", cmdline: "a\0b" };
    assert_eq!(SnpImageMeasurement::from_files(&files), Err(SnpDocumentError::CommandLine));

    let mut bytes = image(&firmware).encode();
    let at = must_find(&bytes, &hex::encode("quiet"));
    bytes[at + 1] = 0;
    assert_eq!(SnpImageMeasurement::decode(&bytes), Err(SnpDocumentError::CommandLine));
}

#[test]
fn sections_are_read_in_file_order() {
    let bytes = must_read(AMD_SEV);
    let firmware = SevFirmware::parse(&bytes).unwrap();

    let section = |gpa, memory_len, kind| Section { gpa, memory_len, kind };
    let expected = [
        section(0x80_0000, 0x9000, SectionKind::SecMemory),
        section(0x80_a000, 0x3000, SectionKind::SecMemory),
        section(0x80_d000, 0x1000, SectionKind::Secrets),
        section(0x80_e000, 0x1000, SectionKind::Cpuid),
        section(0x80_f000, 0x1000, SectionKind::CallingArea),
        section(0x81_0000, 0x1000, SectionKind::KernelHashes),
        section(0x81_1000, 0xf000, SectionKind::SecMemory),
    ];
    assert_eq!(firmware.sections(), expected);
    assert_eq!(firmware.hashes_table_gpa(), Some(0x81_0c00));
    assert_eq!(firmware.reset_eip(), Some(0x80_b004));
}

#[test]
fn a_kernel_that_the_firmware_would_not_measure_is_refused() {
    let bytes = must_read(PLAIN);
    let firmware = SevFirmware::parse(&bytes).unwrap();
    let kernel = KernelHashes::from_files(b"k", b"", "");

    assert_eq!(launch_digest(&firmware, Some(&kernel), &SnpShape::new(1, CpuSignature::EPYC)), Err(SnpLaunchError::KernelNotMeasured));
    let files = SnpImageFiles { firmware: &bytes, kernel: b"k", initrd: b"", cmdline: "" };
    assert_eq!(SnpImageMeasurement::from_files(&files), Err(SnpDocumentError::Firmware(SnpLaunchError::KernelNotMeasured)));
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    let bytes = must_read(AMD_SEV);
    let firmware = SevFirmware::parse(&bytes).unwrap();
    for (vcpus, accepted) in [(0, false), (1, true), (4096, true), (4097, false), (u32::MAX, false)] {
        let digest = launch_digest(&firmware, None, &SnpShape::new(vcpus, CpuSignature::MILAN));
        assert_eq!(digest.is_ok(), accepted, "{vcpus}");
        assert_eq!(digest == Err(SnpLaunchError::VcpuCount { vcpus }), !accepted, "{vcpus}");
    }
}

#[test]
fn a_second_vcpu_needs_to_know_where_to_start() {
    let mut bytes = must_read(AMD_SEV);
    let at = must_find(&bytes, RESET_GUID);
    bytes[at] ^= 1;
    let firmware = SevFirmware::parse(&bytes).unwrap();

    assert!(launch_digest(&firmware, None, &SnpShape::new(1, CpuSignature::EPYC)).is_ok());
    assert_eq!(launch_digest(&firmware, None, &SnpShape::new(2, CpuSignature::EPYC)), Err(SnpLaunchError::NoResetVector));
    let files = SnpImageFiles { firmware: &bytes, kernel: b"", initrd: b"", cmdline: "" };
    assert_eq!(SnpImageMeasurement::from_files(&files), Err(SnpDocumentError::Firmware(SnpLaunchError::NoResetVector)));
}

#[test]
fn guest_features_that_weaken_a_guest_are_recognised() {
    for bits in [1, 0x21, 0x201, 0x8061 | 0x80] {
        assert!(!GuestFeatures::new(bits).unwrap().weakens_guest(), "{bits:#x}");
    }
    for bit in [1, 2, 3, 4, 8, 10, 11, 12, 13, 14, 16, 17, 63] {
        assert!(GuestFeatures::new(1 | 1 << bit).unwrap().weakens_guest(), "bit {bit}");
    }
    assert_eq!(GuestFeatures::new(0x20), Err(SnpLaunchError::NotSnp(0x20)));
    assert_eq!((GuestFeatures::SNP.bits(), GuestFeatures::SNP_DEBUG_SWAP.bits()), (1, 0x21));
}

/// Position of the list of sections in the image.
fn list_at(bytes: &[u8]) -> usize {
    let entry = must_find(bytes, LIST_GUID) - 6;
    let distance = u32::from_le_bytes(bytes[entry..entry + 4].try_into().unwrap());
    bytes.len() - usize::try_from(distance).unwrap()
}

/// Parses the image after `change`, which gets the image and where its list of sections starts.
fn parse_changed(change: impl FnOnce(&mut Vec<u8>, usize)) -> SevFirmwareError {
    let mut bytes = must_read(AMD_SEV);
    let at = list_at(&bytes);
    change(&mut bytes, at);
    SevFirmware::parse(&bytes).err().unwrap()
}

/// Sets one number of section `index`: 0 address, 1 length, 2 type.
fn set(bytes: &mut [u8], list: usize, index: usize, field: usize, value: u32) {
    let at = list + 16 + 12 * index + 4 * field;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn crafted_lists_of_sections_are_refused() {
    let bad_section = |index, what| SevFirmwareError::BadSection { index, what };
    let section = |index, field, value| parse_changed(|bytes, at| set(bytes, at, index, field, value));

    assert_eq!(section(1, 0, 0x80_a010), bad_section(1, "address or length is not page aligned"));
    assert_eq!(section(1, 1, 0x3010), bad_section(1, "address or length is not page aligned"));
    assert_eq!(section(0, 1, 0), bad_section(0, "memory range is empty or reaches beyond 4 GiB"));
    assert_eq!(section(0, 0, 0xffff_8000), bad_section(0, "memory range is empty or reaches beyond 4 GiB"));
    assert_eq!(section(2, 1, 0x2000), bad_section(2, "is not one page"));
    assert_eq!(section(3, 2, 2), bad_section(3, "is the second of a kind that stands alone"));
    assert_eq!(section(1, 0, 0x80_8000), bad_section(1, "overlaps an earlier section"));
    assert_eq!(section(6, 0, 0x80_f000), bad_section(6, "overlaps an earlier section"));
    assert_eq!(section(6, 1, (256 << 20) - 0xf000), bad_section(6, "sections describe more than 256 MiB"));
    assert_eq!(section(4, 2, 5), SevFirmwareError::UnknownSection { index: 4, kind: 5 });
    assert_eq!(section(5, 0, 0x90_0000), SevFirmwareError::HashesTableOutside { gpa: 0x81_0c00 });
}

#[test]
fn sections_may_touch_and_fill_the_limits() {
    let accepted = |index, field, value| {
        let mut bytes = must_read(AMD_SEV);
        let at = list_at(&bytes);
        set(&mut bytes, at, index, field, value);
        SevFirmware::parse(&bytes).is_ok()
    };
    assert!(accepted(0, 0, 0xffff_7000), "ends at 4 GiB");
    assert!(accepted(0, 1, 0xa000), "touches its neighbour");
    assert!(accepted(6, 1, (256 << 20) - 0x10000), "256 MiB together");
}

#[test]
fn the_table_of_hashes_may_end_with_its_page_and_no_later() {
    let with_table_at = |gpa: u32| {
        let mut bytes = must_read(AMD_SEV);
        let at = must_find(&bytes, HASHES_GUID) - 10;
        bytes[at..at + 4].copy_from_slice(&gpa.to_le_bytes());
        SevFirmware::parse(&bytes).map(|firmware| firmware.hashes_table_gpa())
    };
    assert_eq!(with_table_at(0x81_0000), Ok(Some(0x81_0000)));
    assert_eq!(with_table_at(0x81_1000 - 176), Ok(Some(0x81_1000 - 176)));
    assert_eq!(with_table_at(0x81_1000 - 175), Err(SevFirmwareError::HashesTableOutside { gpa: 0x81_1000 - 175 }));
    assert_eq!(with_table_at(0x80_ffff), Err(SevFirmwareError::HashesTableOutside { gpa: 0x80_ffff }));
    assert_eq!(with_table_at(0), Ok(None), "zero means there is none");
}

#[test]
fn crafted_metadata_is_refused() {
    let bad = |what| move |error: &SevFirmwareError| matches!(error, SevFirmwareError::BadMetadata { what: found, .. } if *found == what);
    let assert_bad = |error: SevFirmwareError, what: &'static str| assert!(bad(what)(&error), "{error} is not {what}");

    assert_bad(parse_changed(|bytes, at| bytes[at] ^= 1), "signature is not ASEV");
    assert_bad(parse_changed(|bytes, at| bytes[at + 8] = 2), "version is not 1");
    assert_bad(parse_changed(|bytes, at| bytes[at + 12] = 0), "section count is zero or above 64");
    assert_bad(parse_changed(|bytes, at| bytes[at + 12] = 65), "section count is zero or above 64");
    assert_bad(parse_changed(|bytes, at| bytes[at + 4] ^= 4), "length does not match the section count");
    let distance = |value: u32| {
        move |bytes: &mut Vec<u8>, _: usize| {
            let entry = must_find(bytes, LIST_GUID) - 6;
            bytes[entry..entry + 4].copy_from_slice(&value.to_le_bytes());
        }
    };
    assert_bad(parse_changed(distance(4097)), "outside the image");
    assert_bad(parse_changed(distance(15)), "cut off");
    let at_the_end = |bytes: &mut Vec<u8>, at: usize| {
        let header = bytes[at..at + 16].to_vec();
        let end = bytes.len() - 16;
        bytes[end..].copy_from_slice(&header);
        distance(16)(bytes, at);
    };
    assert_bad(parse_changed(at_the_end), "section list is cut off");
    assert_eq!(
        parse_changed(|bytes, _| {
            let guid = must_find(bytes, LIST_GUID);
            bytes[guid] ^= 1;
        }),
        SevFirmwareError::NoMetadata
    );
}

#[test]
fn crafted_tables_of_entries_are_refused() {
    assert_eq!(parse_changed(|bytes, _| bytes[4048] ^= 1), SevFirmwareError::NoTable);
    assert_eq!(parse_changed(|bytes, _| bytes[4046..4048].copy_from_slice(&17_u16.to_le_bytes())), SevFirmwareError::NoTable);
    assert_eq!(parse_changed(|bytes, _| bytes[4046..4048].copy_from_slice(&5000_u16.to_le_bytes())), SevFirmwareError::NoTable);
    let length = |guid: &'static str, len: u16| {
        parse_changed(move |bytes, _| {
            let at = must_find(bytes, guid) - 2;
            bytes[at..at + 2].copy_from_slice(&len.to_le_bytes());
        })
    };
    assert_eq!(length(RESET_GUID, 17), SevFirmwareError::BadEntry { before_end: 50, len: 17 });
    assert_eq!(length(RESET_GUID, 4000), SevFirmwareError::BadEntry { before_end: 50, len: 4000 });
    // Too short for an address: the entry before it is then misread, or the entry has no data.
    assert!(matches!(length(RESET_GUID, 18), SevFirmwareError::BadItem { .. } | SevFirmwareError::BadEntry { .. }));
    let duplicate = parse_changed(|bytes, _| {
        let reset = hex::decode(RESET_GUID).unwrap();
        let at = must_find(bytes, HASHES_GUID);
        bytes[at..at + 16].copy_from_slice(&reset);
    });
    assert_eq!(duplicate, SevFirmwareError::BadItem { name: "the reset vector" });
}

#[test]
fn firmware_that_is_no_whole_number_of_pages_is_refused() {
    let bytes = must_read(AMD_SEV);
    for len in 0..bytes.len() {
        assert_eq!(SevFirmware::parse(&bytes[bytes.len() - len..]).unwrap_err(), SevFirmwareError::NotPages { len }, "{len}");
    }
    let large = vec![0; (64 << 20) + 4096];
    assert_eq!(SevFirmware::parse(&large).unwrap_err(), SevFirmwareError::TooLarge { len: large.len() });
    assert_eq!(SevFirmware::parse(&large[4096..]).unwrap_err(), SevFirmwareError::NoTable);
}

proptest! {
    #[test]
    fn any_change_of_the_metadata_gets_an_answer(at in 0_usize..4096, byte: u8, vcpus in 1_u32..4) {
        let mut bytes = must_read(AMD_SEV);
        bytes[at] = byte;
        if let Ok(firmware) = SevFirmware::parse(&bytes) {
            let _ = launch_digest(&firmware, Some(&KernelHashes::from_files(b"k", b"i", "c")), &SnpShape::new(vcpus, CpuSignature::EPYC));
        }
    }

    #[test]
    fn any_bytes_as_document_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..680, byte: u8) {
        let _ = SnpImageMeasurement::decode(&bytes);
        let mut document = must_genuine().0.measurement;
        document[at] = byte;
        let _ = SnpImageMeasurement::decode(&document);
    }
}
