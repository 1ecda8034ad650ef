//! The events of two generations of OVMF: the log of a real TD, and logs that Debian's builds wrote to an emulated TPM.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dstack_measurement::acpi::AcpiDigests;
use dstack_measurement::boot_event::event_type;
use dstack_measurement::tdx::{
    self, ExpectedLaunch, HostTables, ImageMeasurement, ImageParts, InitrdDigest, LaunchError, OvmfVariant, UnknownOvmfVariant,
};
use dstack_measurement::{Digest384, QemuVersion, VmShape};
use serde_json::Value;

/// Command line of the kernels that Debian's firmware started.
const TPM_CMDLINE: &str = "console=ttyS0 panic=0";
/// A driver from the option ROM of a network card.
const EFI_BOOT_SERVICES_DRIVER: u32 = 0x8000_0004;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/tdx").join(name)
}

fn must_list(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(testdata(name)).unwrap()).unwrap()
}

fn must_digest(value: &Value) -> Digest384 {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

fn must_firmware() -> Vec<u8> {
    let file = std::fs::File::open(testdata("virtee_OVMF.inteltdx.fd.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The least kernel that can be measured: headers only.
fn kernel() -> Vec<u8> {
    let mut image = vec![0_u8; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x54, &0xf0_u16.to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x58 + 60, &0x400_u32.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x236, &0x7f_u16.to_le_bytes());
    image
}

fn zeros() -> AcpiDigests {
    AcpiDigests { loader: [0; 48], rsdp: [0; 48], tables: [0; 48] }
}

fn launch(ovmf: OvmfVariant, host: HostTables) -> Result<ExpectedLaunch, LaunchError> {
    launch_with(QemuVersion::new(9, 2, 1), ovmf, host)
}

fn launch_with(qemu: QemuVersion, ovmf: OvmfVariant, host: HostTables) -> Result<ExpectedLaunch, LaunchError> {
    let (firmware, kernel) = (must_firmware(), kernel());
    let initrd = InitrdDigest { sha384: [9; 48], len: 5_000_000 };
    let parts = ImageParts { firmware: &firmware, kernel: &kernel, initrd, cmdline: TPM_CMDLINE, ovmf, blob: None };
    tdx::expected_from_parts(&parts, &VmShape::new(2, 2 << 30, qemu).unwrap(), host)
}

#[test]
fn a_td_with_newer_firmware_logs_what_the_formula_says() {
    let log = must_list("eventlog-since202505.json");
    let of_type = |kind: u32| log.iter().filter(move |event| event["event_type"] == kind).map(|event| must_digest(&event["digest"]));
    let acpi: Vec<Digest384> =
        log.iter().filter(|event| event["event_payload"] == hex::encode("ACPI DATA")).map(|event| must_digest(&event["digest"])).collect();
    let tagged: Vec<Digest384> = of_type(event_type::EVENT_TAG).collect();
    let document = ImageMeasurement::decode(&std::fs::read(testdata("image1.measurement.tdx.cbor")).unwrap()).unwrap();
    let image = ImageMeasurement {
        ovmf: OvmfVariant::Since202505,
        kernel_authenticode: of_type(event_type::EFI_BOOT_SERVICES_APPLICATION).next().unwrap(),
        cmdline_sha384: tagged[0],
        initrd_sha384: tagged[1],
        ..document
    };
    let host = HostTables {
        acpi: AcpiDigests { loader: acpi[0], rsdp: acpi[1], tables: acpi[2] },
        smbios: of_type(event_type::EFI_HANDOFF_TABLES).next(),
    };
    let shape = VmShape::new(8, 16 << 30, QemuVersion::new(8, 2, 2)).unwrap();

    let launch = tdx::expected(&image, &shape, host).unwrap();

    assert_eq!(launch.events.len(), log.len());
    let address_in_payload = [event_type::EFI_BOOT_SERVICES_APPLICATION, event_type::EFI_HANDOFF_TABLES];
    for (index, (event, logged)) in launch.events.iter().zip(&log).enumerate() {
        assert_eq!(u64::from(event.imr), logged["imr"].as_u64().unwrap(), "event {index}");
        assert_eq!(u64::from(event.event_type), logged["event_type"].as_u64().unwrap(), "event {index}");
        assert_eq!(hex::encode(event.digest), logged["digest"].as_str().unwrap(), "event {index}: {}", event.name);
        if !address_in_payload.contains(&event.event_type) {
            assert_eq!(hex::encode(&event.payload), logged["event_payload"].as_str().unwrap(), "event {index}: {}", event.name);
        }
    }
    // The registers of the quote beside the log.
    let registers = launch.registers;
    assert!(hex::encode(registers.rtmr0).starts_with("6203948b7c12a0c2e14ed9b11170d7b8"));
    assert!(hex::encode(registers.rtmr1).starts_with("0ea1ad399114c5909c52c8b8c073f0c4"));
    assert!(hex::encode(registers.rtmr2).starts_with("1c9854088a35a1c44483d6ba5e88333c"));
}

/// Events that firmware without TDX logs as well, in order: the hand-off block, the firmware's own volume and items of `fw_cfg` are
/// TDX's; ACPI, SMBIOS, kernel and initrd belong to the machine that was booted.
fn is_comparable(event_kind: u32, payload: &[u8]) -> bool {
    let is_initrd = payload.ends_with(b"Linux initrd\0");
    let compared = [event_type::EFI_VARIABLE_DRIVER_CONFIG, event_type::EFI_VARIABLE_BOOT, event_type::EFI_ACTION, event_type::EVENT_TAG];
    compared.contains(&event_kind) && !is_initrd
}

#[test]
fn debian_firmware_logs_what_the_formula_says() {
    for (name, ovmf) in [("ovmf-2025.02.tpm-log.json", OvmfVariant::Pre202505), ("ovmf-2026.08.tpm-log.json", OvmfVariant::Since202505)] {
        let logged: Vec<(u32, u64, Digest384)> = must_list(name)
            .iter()
            .filter(|event| {
                is_comparable(
                    u32::try_from(event["event_type"].as_u64().unwrap()).unwrap(),
                    &hex::decode(event["payload"].as_str().unwrap()).unwrap(),
                )
            })
            // PCR 1 and 7 are RTMR0, 2 to 6 RTMR1, 8 and above RTMR2.
            .map(|event| match event["pcr"].as_u64().unwrap() {
                1 | 7 => (0, event["event_type"].as_u64().unwrap(), must_digest(&event["sha384"])),
                2..=6 => (1, event["event_type"].as_u64().unwrap(), must_digest(&event["sha384"])),
                _ => (2, event["event_type"].as_u64().unwrap(), must_digest(&event["sha384"])),
            })
            .collect();

        let launch = launch(ovmf, HostTables { acpi: zeros(), smbios: Some([1; 48]) }).unwrap();

        let expected: Vec<(u32, u64, Digest384)> = launch
            .events
            .iter()
            .filter(|event| is_comparable(event.event_type, &event.payload))
            .map(|event| (event.imr, u64::from(event.event_type), event.digest))
            .collect();
        assert_eq!(expected, logged, "{name}");
    }
}

#[test]
fn only_newer_firmware_measures_smbios_before_it_looks_at_boot_entries() {
    let order = |name| {
        let kinds: Vec<u64> = must_list(name).iter().map(|event| event["event_type"].as_u64().unwrap()).collect();
        let at = |kind: u32| kinds.iter().position(|logged| *logged == u64::from(kind));
        (at(event_type::EFI_BOOT_SERVICES_APPLICATION), at(event_type::EFI_HANDOFF_TABLES), at(event_type::EFI_VARIABLE_BOOT))
    };

    let (kernel, smbios, boot_order) = order("ovmf-2026.08.tpm-log.json");
    assert!(kernel < smbios && smbios < boot_order && smbios.is_some());
    assert_eq!(order("ovmf-2025.02.tpm-log.json").1, None);
}

#[test]
fn the_option_rom_of_a_network_card_is_logged_although_no_td_has_logged_one() {
    let drivers = must_list("ovmf-2025.02.tpm-log.json").iter().filter(|event| event["event_type"] == EFI_BOOT_SERVICES_DRIVER).count();

    assert_eq!(drivers, 1);
}

#[test]
fn newer_firmware_needs_the_digest_of_smbios() {
    assert_eq!(launch(OvmfVariant::Since202505, zeros().into()), Err(LaunchError::UnknownSmbios));
    let registers = |smbios| launch(OvmfVariant::Since202505, HostTables { acpi: zeros(), smbios }).unwrap().registers;
    let (one, other) = (registers(Some([1; 48])), registers(Some([2; 48])));

    assert_ne!(one.rtmr0, other.rtmr0);
    assert_eq!((one.mrtd, one.rtmr1, one.rtmr2), (other.mrtd, other.rtmr1, other.rtmr2));
}

#[test]
fn older_firmware_ignores_the_digest_of_smbios() {
    let registers = |smbios| launch(OvmfVariant::Pre202505, HostTables { acpi: zeros(), smbios }).unwrap().registers;

    assert_eq!(registers(Some([1; 48])), registers(None));
}

#[test]
fn the_two_generations_differ_in_variables_and_command_line_not_in_the_kernel() {
    let registers = |ovmf| launch(ovmf, HostTables { acpi: zeros(), smbios: Some([1; 48]) }).unwrap().registers;
    let (older, newer) = (registers(OvmfVariant::Pre202505), registers(OvmfVariant::Since202505));

    assert_eq!(older.mrtd, newer.mrtd);
    assert_ne!(older.rtmr0, newer.rtmr0);
    assert_eq!(older.rtmr1, newer.rtmr1);
    assert_ne!(older.rtmr2, newer.rtmr2);
}

#[test]
fn a_firmware_with_another_name_is_unknown() {
    assert_eq!("pre202505".parse(), Ok(OvmfVariant::Pre202505));
    assert_eq!("since202505".parse(), Ok(OvmfVariant::Since202505));
    assert!("202505".parse::<OvmfVariant>().is_err_and(|error: UnknownOvmfVariant| error.to_string().contains("\"202505\"")));
}

#[test]
fn qemu_10_0_gives_newer_firmware_the_kernel_as_it_is() {
    let unchanged = dstack_measurement::authenticode::sha384(&kernel()).unwrap();
    let kernel_of = |qemu, ovmf| {
        let launch = launch_with(qemu, ovmf, HostTables { acpi: zeros(), smbios: Some([1; 48]) }).unwrap();
        launch.events.iter().find(|event| event.name == "kernel").unwrap().digest
    };

    assert_eq!(kernel_of(QemuVersion::new(10, 0, 2), OvmfVariant::Since202505), unchanged);
    assert_ne!(kernel_of(QemuVersion::new(9, 2, 4), OvmfVariant::Since202505), unchanged);
    // Built before there were named files.
    assert_ne!(kernel_of(QemuVersion::new(10, 0, 2), OvmfVariant::Pre202505), unchanged);
    assert_eq!(kernel_of(QemuVersion::new(10, 2, 0), OvmfVariant::Pre202505), unchanged);
}

#[test]
fn a_document_with_a_patched_kernel_says_nothing_of_newer_firmware_under_qemu_10_0() {
    let document = ImageMeasurement::decode(&std::fs::read(testdata("image1.measurement.tdx.cbor")).unwrap()).unwrap();
    let newer = ImageMeasurement { ovmf: OvmfVariant::Since202505, ..document.clone() };
    let host = HostTables { acpi: zeros(), smbios: Some([1; 48]) };
    let expected = |image, qemu| tdx::expected(image, &VmShape::new(2, 2 << 30, qemu).unwrap(), host).map(drop);
    let (v9_2, v10_1, v10_2) = (QemuVersion::new(9, 2, 0), QemuVersion::new(10, 1, 0), QemuVersion::new(10, 2, 0));

    assert_eq!((expected(&document, v10_1), expected(&newer, v9_2)), (Ok(()), Ok(())));
    assert_eq!(expected(&newer, v10_1), Err(LaunchError::UnsupportedQemu(v10_1)));
    assert_eq!(expected(&document, v10_2), Err(LaunchError::UnsupportedQemu(v10_2)));
}
