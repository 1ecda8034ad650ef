//! Registers, documents and event logs of real machines.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stderr, reason = "tests panic on purpose")]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dstack_manifest::VmConfig;
use dstack_measurement::acpi::{self, AcpiDigests, AcpiError, AcpiProfile, InterruptTrigger, PciWindow};
use dstack_measurement::boot_event::event_type;
use dstack_measurement::checksum::{ChecksumFile, os_image_hash};
use dstack_measurement::kernel_blob::KernelBlob;
use dstack_measurement::mrtd::mrtd;
use dstack_measurement::tdvf::Tdvf;
use dstack_measurement::tdx::{self, DocumentError, ImageError, ImageMeasurement, LaunchError, UnpatchedKernel};
use dstack_measurement::{BootEvent, Digest384, DocumentFormatError, PageAddOrder, QemuVersion, VmShape, replay, sha384};
use serde_json::Value;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/tdx").join(name)
}

fn must_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(testdata(name)).unwrap()).unwrap()
}

fn must_firmware() -> Vec<u8> {
    let file = std::fs::File::open(testdata("virtee_OVMF.inteltdx.fd.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

fn must_digest(value: &Value) -> Digest384 {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

/// (event type, digest) of register `imr` of a machine.
fn must_events(machine: &Value, imr: &str) -> Vec<(u32, Digest384)> {
    let events = machine["boot_event_digests"][imr].as_array().unwrap();
    events.iter().map(|event| (u32::try_from(event[0].as_u64().unwrap()).unwrap(), must_digest(&event[1]))).collect()
}

fn must_machines() -> Vec<Value> {
    must_json("machines.json").as_array().unwrap().clone()
}

/// ACPI digests as logged by a machine.
fn must_acpi(machine: &Value) -> AcpiDigests {
    let logged: Vec<Digest384> = must_events(machine, "0")
        .into_iter()
        .filter(|(kind, _)| *kind == event_type::PLATFORM_CONFIG_FLAGS)
        .map(|(_, digest)| digest)
        .collect();
    let [loader, rsdp, tables] = logged[..] else { panic!("{} ACPI events", logged.len()) };
    AcpiDigests { loader, rsdp, tables }
}

fn registers_of(launch: &tdx::ExpectedLaunch) -> [Digest384; 3] {
    [launch.registers.rtmr0, launch.registers.rtmr1, launch.registers.rtmr2]
}

/// The configuration without its measurement document, which early machines have in another form.
fn must_config(machine: &Value) -> VmConfig {
    let mut config = machine["vm_config"].clone();
    config.as_object_mut().unwrap().remove("tdx_measurement");
    serde_json::from_value(config).unwrap()
}

fn must_document_of(machine: &Value) -> ImageMeasurement {
    ImageMeasurement::decode(&hex::decode(machine["measurement_cbor_hex"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn mrtd_of_a_public_firmware_matches_independent_computation() {
    let firmware = must_firmware();
    let expected = &must_json("expected.json")["images"][0]["decoded"]["tdvf"]["mrtd"];

    let tdvf = Tdvf::parse(&firmware).unwrap();

    assert_eq!(mrtd(&tdvf, PageAddOrder::SinglePass), must_digest(&expected["single_pass"]));
    assert_eq!(mrtd(&tdvf, PageAddOrder::TwoPass), must_digest(&expected["two_pass"]));
}

#[test]
fn published_documents_survive_decoding_and_encoding() {
    for (index, name) in ["image1.measurement.tdx.cbor", "image2.measurement.tdx.cbor"].into_iter().enumerate() {
        let bytes = std::fs::read(testdata(name)).unwrap();
        let image = &must_json("expected.json")["images"][index]["decoded"];

        let document = ImageMeasurement::decode(&bytes).unwrap();

        assert_eq!(document.encode(), bytes, "{name}");
        assert_eq!(document.kernel_authenticode, must_digest(&image["image"]["kernel_authenticode"]));
        assert_eq!(document.initrd_sha384, must_digest(&image["image"]["initrd_sha384"]));
        assert_eq!(document.cmdline_sha384, must_digest(&image["image"]["cmdline_sha384"]));
        assert_eq!(hex::encode(document.td_hob.encode()), image["tdvf"]["td_hob"].as_str().unwrap());
    }
}

#[test]
fn a_machine_that_carries_its_document_has_the_expected_registers() {
    let machines = must_machines();
    let bound: Vec<&Value> = machines.iter().filter(|machine| machine["checksum_file"].is_string()).collect();
    assert!(!bound.is_empty());
    for machine in bound {
        let config: VmConfig = serde_json::from_value(machine["vm_config"].clone()).unwrap();
        let image = ImageMeasurement::from_bound_document(config.tdx_measurement.as_ref().unwrap(), config.os_image_hash.as_ref().unwrap())
            .unwrap();

        let launch = tdx::expected(&image, &VmShape::try_from(&config).unwrap(), must_acpi(machine)).unwrap();

        assert_eq!(launch.registers.mrtd, must_digest(&machine["mrtd"]));
        for (imr, register) in registers_of(&launch).into_iter().enumerate() {
            assert_eq!(register, must_digest(&machine["rtmr"][imr]), "RTMR{imr} of {}", machine["id"]);
        }
    }
}

#[test]
fn every_machine_logs_the_expected_firmware_events() {
    // Cmdline, kernel and initrd differ between images; the rest must come out whatever the document says.
    let document = ImageMeasurement::decode(&std::fs::read(testdata("image1.measurement.tdx.cbor")).unwrap()).unwrap();
    for machine in must_machines() {
        let config = must_config(&machine);
        let rtmr1 = must_events(&machine, "1");
        let rtmr2 = must_events(&machine, "2");
        let image =
            ImageMeasurement { kernel_authenticode: rtmr1[0].1, cmdline_sha384: rtmr2[0].1, initrd_sha384: rtmr2[1].1, ..document.clone() };

        let launch = tdx::expected(&image, &VmShape::try_from(&config).unwrap(), must_acpi(&machine)).unwrap();

        for (imr, register) in registers_of(&launch).into_iter().enumerate() {
            let events: Vec<(u32, Digest384)> =
                launch.events.iter().filter(|event| event.imr as usize == imr).map(|event| (event.event_type, event.digest)).collect();
            assert_eq!(events, must_events(&machine, &imr.to_string()), "{}", machine["id"]);
            assert_eq!(register, must_digest(&machine["rtmr"][imr]), "RTMR{imr} of {}", machine["id"]);
        }
    }
}

/// The window is far longer than what the devices use, so only its start shows.
const MEASURED_WINDOW: PciWindow = PciWindow::OVMF_46_BITS;

/// The profile of a machine and its shape. Not every machine states its QEMU; those that do show which one the others are.
fn must_profile(machine: &Value) -> (AcpiProfile, VmShape) {
    let shape = VmShape::try_from(&must_config(machine)).unwrap();
    // Built without a view on the end of interrupts, other than the machines of the same release that say so.
    let is_edge_9_2 = machine["id"] == "vm-d096f394";
    if shape.hotplug_off {
        let trigger = if is_edge_9_2 { InterruptTrigger::Edge } else { InterruptTrigger::Level };
        (AcpiProfile::tdx_9_2(trigger, MEASURED_WINDOW), VmShape { qemu_version: QemuVersion::new(9, 2, 1), ..shape })
    } else {
        (AcpiProfile::tdx_8_2(MEASURED_WINDOW), VmShape { qemu_version: QemuVersion::new(8, 2, 2), ..shape })
    }
}

#[test]
fn generated_acpi_tables_have_the_digests_that_tdx_hardware_measured() {
    let mut compared = 0;
    for machine in must_machines() {
        let (profile, shape) = must_profile(&machine);

        let tables = acpi::tables(&shape, profile).unwrap();

        assert_eq!(tables.digests(), must_acpi(&machine), "{}", machine["id"]);
        compared += 1;
    }
    assert_eq!(compared, 18);
}

#[test]
fn tables_of_every_tdx_machine_are_recognised() {
    for machine in must_machines() {
        // Machines that do not state their QEMU count as one of 9.1, whose tables are not modelled.
        let shape = VmShape::try_from(&must_config(&machine)).unwrap();
        let (expected, _) = must_profile(&machine);

        assert_eq!(acpi::recognise(&shape, &must_acpi(&machine)), Some(expected), "{}", machine["id"]);
    }
}

#[test]
fn a_tdx_profile_answers_only_for_what_it_was_compared_with() {
    let refused = |shape: &VmShape, profile| matches!(acpi::tables(shape, profile), Err(AcpiError::Unsupported { .. }));
    let shape = |major, minor, hotplug_off| VmShape { hotplug_off, ..VmShape::new(1, 1 << 31, QemuVersion::new(major, minor, 2)).unwrap() };
    let (v8_2, v9_2) = (AcpiProfile::tdx_8_2(MEASURED_WINDOW), AcpiProfile::tdx_9_2(InterruptTrigger::Level, MEASURED_WINDOW));

    assert!(!refused(&shape(8, 2, false), v8_2));
    assert!(!refused(&shape(8, 2, true), v8_2));
    assert!(refused(&shape(8, 1, false), v8_2));
    assert!(!refused(&shape(9, 2, true), v9_2));
    assert!(refused(&shape(9, 2, false), v9_2));
    assert!(refused(&shape(10, 2, true), v9_2));
}

#[test]
fn the_event_log_has_the_order_types_and_payloads_of_a_real_one() {
    let log = must_json("eventlog-8vcpu.json");
    let logged: Vec<&Value> = log.as_array().unwrap().iter().filter(|event| event["imr"].as_u64() != Some(3)).collect();
    let digest = |index: usize| must_digest(&logged[index]["digest"]);
    let document = ImageMeasurement::decode(&std::fs::read(testdata("image1.measurement.tdx.cbor")).unwrap()).unwrap();
    let image = ImageMeasurement { kernel_authenticode: digest(11), cmdline_sha384: digest(16), initrd_sha384: digest(17), ..document };
    let acpi = AcpiDigests { loader: digest(8), rsdp: digest(9), tables: digest(10) };
    let shape = VmShape::new(4, 8 << 30, QemuVersion::new(8, 2, 2)).unwrap();

    let launch = tdx::expected(&image, &shape, acpi).unwrap();

    assert_eq!(launch.events.len(), logged.len());
    for (index, (event, logged)) in launch.events.iter().zip(logged).enumerate() {
        assert_eq!(u64::from(event.imr), logged["imr"].as_u64().unwrap(), "event {index}");
        assert_eq!(u64::from(event.event_type), logged["event_type"].as_u64().unwrap(), "event {index}");
        assert_eq!(hex::encode(event.digest), logged["digest"].as_str().unwrap(), "event {index}: {}", event.name);
        if event.event_type != event_type::EFI_BOOT_SERVICES_APPLICATION {
            assert_eq!(hex::encode(&event.payload), logged["event_payload"].as_str().unwrap(), "event {index}: {}", event.name);
        }
    }
}

#[test]
fn flipping_any_part_of_the_image_changes_a_register() {
    let machine = &must_machines()[0];
    let config: VmConfig = serde_json::from_value(machine["vm_config"].clone()).unwrap();
    let shape = VmShape::try_from(&config).unwrap();
    let image = must_document_of(machine);
    let acpi = must_acpi(machine);
    let good = tdx::expected(&image, &shape, acpi).unwrap().registers;

    let flip = |change: fn(&mut ImageMeasurement)| {
        let mut image = image.clone();
        change(&mut image);
        tdx::expected(&image, &shape, acpi).unwrap().registers
    };

    assert_ne!(flip(|image| image.kernel_authenticode[0] ^= 1).rtmr1, good.rtmr1);
    assert_ne!(flip(|image| image.cmdline_sha384[47] ^= 1).rtmr2, good.rtmr2);
    assert_ne!(flip(|image| image.initrd_sha384[9] ^= 1).rtmr2, good.rtmr2);
    assert_ne!(flip(|image| image.mrtd_two_pass[0] ^= 1).mrtd, good.mrtd);
    assert_eq!(flip(|image| image.mrtd_single_pass[0] ^= 1), good, "QEMU 8 uses the other order");
    for part in 0..3 {
        let mut acpi = acpi;
        [&mut acpi.loader, &mut acpi.rsdp, &mut acpi.tables][part][0] ^= 1;
        assert_ne!(tdx::expected(&image, &shape, acpi).unwrap().registers.rtmr0, good.rtmr0);
    }
    let larger = VmShape { memory_size: 4 << 30, ..shape.clone() };
    assert_ne!(tdx::expected(&image, &larger, acpi).unwrap().registers.rtmr0, good.rtmr0);
}

#[test]
fn the_document_refuses_vms_it_does_not_cover() {
    let machine = &must_machines()[0];
    let (image, acpi) = (must_document_of(machine), must_acpi(machine));
    let launch = |memory: u64, qemu| tdx::expected(&image, &VmShape::new(1, memory, qemu).unwrap(), acpi);
    let old = QemuVersion::new(9, 2, 0);

    assert_eq!(launch(1 << 30, old), Err(LaunchError::UnsupportedMemory { memory_size: 1 << 30 }));
    assert_eq!(launch(0xaff0_0000, old), Err(LaunchError::UnsupportedMemory { memory_size: 0xaff0_0000 }));
    assert!(launch(0xb000_0000, old).is_ok());
    assert_eq!(launch(1 << 31, QemuVersion::new(10, 2, 0)), Err(LaunchError::UnsupportedQemu(QemuVersion::new(10, 2, 0))));
    assert!(launch(1 << 31, QemuVersion::new(10, 1, 9)).is_ok());
}

#[test]
fn a_document_of_version_4_covers_unpatched_kernels() {
    let machine = &must_machines()[0];
    let (old, acpi) = (must_document_of(machine), must_acpi(machine));
    let with = |blob| ImageMeasurement { unpatched_kernel: Some(UnpatchedKernel { authenticode: [7; 48], blob }), ..old.clone() };
    let (named, patched) = (with(KernelBlob::Named), with(KernelBlob::Patched));
    let kernel = |image: &ImageMeasurement, memory: u64, qemu| {
        let launch = tdx::expected(image, &VmShape::new(1, memory, qemu).unwrap(), acpi)?;
        Ok(launch.events.iter().find(|event| event.name == "kernel").unwrap().digest)
    };
    let (v9, v10_0, v10_2) = (QemuVersion::new(9, 2, 0), QemuVersion::new(10, 0, 2), QemuVersion::new(10, 2, 0));

    for image in [&named, &patched] {
        assert_eq!(kernel(image, 2 << 30, v9), Ok(old.kernel_authenticode));
        assert_eq!(kernel(image, 1 << 30, v9), Err(LaunchError::UnsupportedMemory { memory_size: 1 << 30 }));
        assert_eq!(kernel(image, 1 << 30, v10_2), Ok([7; 48]));
        assert_eq!(ImageMeasurement::decode(&image.encode()).as_ref(), Ok(image));
        assert_eq!(image.encode()[9], 4);
    }
    assert_eq!(kernel(&named, 2 << 30, v10_0), Ok([7; 48]));
    assert_eq!(kernel(&patched, 2 << 30, v10_0), Ok(old.kernel_authenticode));
    assert_ne!(named.encode(), patched.encode());
}

#[test]
fn a_version_3_that_says_more_is_refused() {
    let image = ImageMeasurement {
        unpatched_kernel: Some(UnpatchedKernel { authenticode: [7; 48], blob: KernelBlob::Named }),
        ..must_document_of(&must_machines()[0])
    };
    let mut bytes = image.encode();
    bytes[9] = 3;

    assert_eq!(ImageMeasurement::decode(&bytes), Err(DocumentError::Format(DocumentFormatError::NotDeterministic)));
}

#[test]
fn a_document_must_be_bound_to_its_image() {
    let config: VmConfig = serde_json::from_value(must_machines()[0]["vm_config"].clone()).unwrap();
    let document = config.tdx_measurement.unwrap();
    let hash = config.os_image_hash.unwrap();
    assert_eq!(ChecksumFile::parse(&document.checksum_file).unwrap().os_image_hash(), hash);

    let mut other_measurement = document.clone();
    other_measurement.measurement[60] ^= 1;
    let mut other_checksums = document.clone();
    other_checksums.checksum_file[0] = b'0';
    let mut unlisted = document.clone();
    unlisted.checksum_file = [b"0".repeat(64).as_slice(), b"  other.cbor\n"].concat();

    let bound = |document| ImageMeasurement::from_bound_document(document, &hash);
    assert!(bound(&document).is_ok());
    assert!(matches!(bound(&other_measurement), Err(DocumentError::Format(DocumentFormatError::NotBound(_)))));
    assert!(matches!(bound(&other_checksums), Err(DocumentError::Format(DocumentFormatError::NotBound(_)))));
    let unlisted_hash = os_image_hash(&unlisted.checksum_file);
    assert!(matches!(
        ImageMeasurement::from_bound_document(&unlisted, &unlisted_hash),
        Err(DocumentError::Format(DocumentFormatError::NotBound(_)))
    ));
}

#[test]
fn documents_in_another_encoding_are_refused() {
    let good = std::fs::read(testdata("image1.measurement.tdx.cbor")).unwrap();

    let trailing = [good.as_slice(), &[0]].concat();
    let mut version = good.clone();
    version[9] = 5;
    let mut version_4_with_less = good.clone();
    version_4_with_less[9] = 4;
    let mut long_number = good.clone();
    long_number.splice(9..10, [0x18, 3]);
    let mut unknown_variant = good.clone();
    let at = good.windows(9).position(|window| window == b"pre202505").unwrap();
    unknown_variant[at] = b'q';

    assert_eq!(ImageMeasurement::decode(&trailing), Err(DocumentError::Format(DocumentFormatError::NotDeterministic)));
    assert_eq!(ImageMeasurement::decode(&version), Err(DocumentError::Format(DocumentFormatError::UnsupportedVersion(5))));
    assert_eq!(ImageMeasurement::decode(&version_4_with_less), Err(DocumentError::Format(DocumentFormatError::NotDeterministic)));
    assert_eq!(ImageMeasurement::decode(&long_number), Err(DocumentError::Format(DocumentFormatError::NotDeterministic)));
    assert!(matches!(ImageMeasurement::decode(&unknown_variant), Err(DocumentError::Format(DocumentFormatError::Malformed(_)))));
    assert!(matches!(ImageMeasurement::decode(&good[..100]), Err(DocumentError::Format(DocumentFormatError::Malformed(_)))));
    assert!(matches!(
        ImageMeasurement::decode(&vec![0; 5000]),
        Err(DocumentError::Format(DocumentFormatError::TooLarge { len: 5000, limit: 4096 }))
    ));
}

#[test]
fn a_firmware_with_another_variable_store_is_named_unknown() {
    assert!(matches!(tdx::identify_ovmf(&must_firmware()), Err(ImageError::UnknownVariableStore { .. })));
}

#[test]
fn replay_ignores_registers_it_does_not_have() {
    let event = BootEvent { imr: 7, event_type: 0, digest: sha384(b""), name: "other", payload: Vec::new() };

    assert_eq!(replay(&[event]), [[0; 48]; 3]);
}
