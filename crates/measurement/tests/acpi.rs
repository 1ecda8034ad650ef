//! The generated ACPI files against those of QEMU: captured ones, and the installed QEMU as a live oracle.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic on purpose and say why they do not run")]

mod qtest;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use dstack_measurement::acpi::{self, AcpiError, AcpiProfile, AcpiTables, PciWindow};
use dstack_measurement::{HostShareMode, QemuVersion, VmShape, sha384};
use qtest::Qemu;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Release the tables are modelled after.
const MODELLED: QemuVersion = QemuVersion::new(10, 0, 2);

struct Case {
    name: &'static str,
    shape: VmShape,
}

fn must_shape(cpus: u32, memory_mib: u64, volumes: u32, nics: u32) -> VmShape {
    VmShape { num_verity_volumes: volumes, num_nics: nics, ..VmShape::new(cpus, memory_mib * MIB, MODELLED).unwrap() }
}

/// Every shape that is compared, by the name of its files in `testdata/acpi`.
fn cases() -> Vec<Case> {
    let case = |name, shape| Case { name, shape };
    vec![
        case("cpu1-mem2048-vol0-nic1", must_shape(1, 2048, 0, 1)),
        case("cpu2-mem2048-vol1-nic1", must_shape(2, 2048, 1, 1)),
        case("cpu4-mem4096-vol2-nic2", must_shape(4, 4096, 2, 2)),
        case("cpu1-mem1024-vol0-nic0", must_shape(1, 1024, 0, 0)),
        case("cpu8-mem3072-vol24-nic2", must_shape(8, 3072, 24, 2)),
        case("cpu3-mem2815-vol0-nic1", must_shape(3, 2815, 0, 1)),
        case("cpu255-mem2816-vol0-nic1", must_shape(255, 2816, 0, 1)),
        case("cpu9-mem16384-vol0-nic1", must_shape(9, 16384, 0, 1)),
        case("hotplug-off", VmShape { hotplug_off: true, ..must_shape(2, 4096, 1, 1) }),
        case("pic-on", VmShape { pic: true, ..must_shape(2, 2048, 0, 1) }),
        case("hole64-64g", VmShape { pci_hole64_size: 64 * GIB, ..must_shape(1, 2048, 0, 1) }),
        case("share-9p", VmShape { host_share: HostShareMode::NineP, ..must_shape(1, 2048, 0, 1) }),
    ]
}

/// QEMU's arguments for a shape, with stand-ins where the host lacks a device: every PCI function gets the same object in the tables.
fn arguments(shape: &VmShape, disk: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |values: &[&str]| arguments.extend(values.iter().map(|value| (*value).to_owned()));
    let on_off = |on| if on { "on" } else { "off" };
    add(&["-nodefaults", "-nographic", "-serial", "null", "-monitor", "none", "-cpu", "qemu64"]);
    add(&["-smp", &shape.cpu_count.to_string(), "-m", &format!("{}M", shape.memory_size / MIB)]);
    add(&["-object", &format!("memory-backend-memfd,id=mem,size={},share=on", shape.memory_size)]);
    add(&["-machine", &format!("q35,hpet=off,smm=off,pic={},memory-backend=mem", on_off(shape.pic))]);
    let mut disk = |id: String| {
        add(&["-drive", &format!("file={},if=none,id={id},format=raw,readonly=on", disk.display())]);
        add(&["-device", &format!("virtio-blk-pci,drive={id}")]);
    };
    disk("hd0".to_owned());
    disk("hd1".to_owned());
    (0..shape.num_verity_volumes).for_each(|index| disk(format!("vol{index}")));
    for index in 0..shape.num_nics {
        arguments.extend(["-netdev".to_owned(), format!("user,id=net{index}")]);
        arguments.extend(["-device".to_owned(), format!("virtio-net-pci,netdev=net{index}")]);
    }
    let mut add = |values: &[&str]| arguments.extend(values.iter().map(|value| (*value).to_owned()));
    // Stands for vhost-vsock-pci, which needs a kernel device.
    add(&["-device", "virtio-rng-pci"]);
    // Stands for the share, a disk or 9p.
    add(&["-device", "virtio-balloon-pci"]);
    if shape.pci_hole64_size != 0 {
        add(&["-global", &format!("q35-pcihost.pci-hole64-size={}", shape.pci_hole64_size)]);
    }
    if shape.hotplug_off {
        add(&["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]);
    }
    arguments
}

fn testdata(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/acpi").join(format!("{name}.{file}.gz"))
}

fn must_load(name: &str) -> AcpiTables {
    let load = |file| {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(std::fs::File::open(testdata(name, file)).unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    AcpiTables { tables: load("tables"), rsdp: load("rsdp"), loader: load("loader") }
}

fn must_save(name: &str, files: &AcpiTables) {
    for (file, bytes) in [("tables", &files.tables), ("rsdp", &files.rsdp), ("loader", &files.loader)] {
        let mut writer = flate2::GzBuilder::new().write(std::fs::File::create(testdata(name, file)).unwrap(), flate2::Compression::best());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap();
    }
}

/// Fails with the first difference instead of two dumps of 128 KiB.
fn assert_same(name: &str, generated: &AcpiTables, expected: &AcpiTables) {
    for (file, generated, expected) in [
        ("tables", &generated.tables, &expected.tables),
        ("rsdp", &generated.rsdp, &expected.rsdp),
        ("loader", &generated.loader, &expected.loader),
    ] {
        let difference = generated.iter().zip(expected).position(|(left, right)| left != right);
        assert_eq!((difference, generated.len()), (None, expected.len()), "{name}: first difference in {file}");
    }
}

fn software_tee(shape: &VmShape) -> AcpiTables {
    acpi::tables(shape, AcpiProfile::SOFTWARE_TEE).unwrap()
}

#[test]
fn generated_files_equal_the_captured_ones() {
    for case in cases() {
        assert_same(case.name, &software_tee(&case.shape), &must_load(case.name));
    }
}

#[test]
fn generated_files_equal_those_a_booted_firmware_has_read() {
    let window = PciWindow::Assigned { first: 0xc0_0000_0000, last: 0xc0_0001_3fff };

    let generated = acpi::tables(&must_shape(1, 2048, 0, 1), AcpiProfile::qemu_10_0(window)).unwrap();

    assert_same("booted-ovmf", &generated, &must_load("booted-ovmf"));
}

#[test]
fn generated_files_equal_those_of_the_installed_qemu() {
    let Some(version) = qtest::installed_version() else {
        eprintln!("not run: qemu-system-x86_64 is not installed");
        return;
    };
    if (version.major, version.minor) != (MODELLED.major, MODELLED.minor) {
        eprintln!("not run: qemu-system-x86_64 is {version}, the tables are modelled after {MODELLED}");
        return;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(MIB).unwrap();
    for case in cases() {
        let mut qemu = Qemu::start(&arguments(&case.shape, disk.path()));
        qemu.program_like_ovmf();
        let files = qemu.acpi_files();
        if std::env::var_os("DSTACK_CAPTURE_ACPI").is_some() {
            must_save(case.name, &files);
        }
        assert_same(case.name, &software_tee(&case.shape), &files);
    }
}

#[test]
fn digests_are_those_of_the_files() {
    let files = software_tee(&must_shape(1, 2048, 0, 1));
    let digests = files.digests();

    assert_eq!(digests.tables, sha384(&files.tables));
    assert_eq!(digests.rsdp, sha384(&files.rsdp));
    assert_eq!(digests.loader, sha384(&files.loader));
}

#[test]
fn whatever_shows_in_the_tables_changes_a_digest() {
    let base = must_shape(2, 2048, 1, 1);
    let digests = |shape: &VmShape| software_tee(shape).digests();
    let changed = [
        VmShape { cpu_count: 3, ..base.clone() },
        VmShape { memory_size: 4 * GIB, ..base.clone() },
        VmShape { num_nics: 2, ..base.clone() },
        VmShape { num_verity_volumes: 2, ..base.clone() },
        VmShape { hotplug_off: true, ..base.clone() },
        VmShape { pic: true, ..base.clone() },
        VmShape { pci_hole64_size: GIB, ..base.clone() },
    ];

    for shape in changed {
        assert_ne!(digests(&shape), digests(&base), "{shape:?}");
    }
}

#[test]
fn machines_that_are_not_modelled_are_refused() {
    let base = must_shape(1, 2048, 0, 1);
    let refused = [
        VmShape { num_gpus: 1, ..base.clone() },
        VmShape { num_nvswitches: 1, ..base.clone() },
        VmShape { hugepages: true, ..base.clone() },
        VmShape { swtpm: true, ..base.clone() },
        VmShape { cpu_count: 256, ..base.clone() },
        VmShape { memory_size: 513 * GIB, ..base.clone() },
        VmShape { num_verity_volumes: 26, ..base.clone() },
        VmShape { num_nics: u32::MAX, ..base.clone() },
        VmShape { pci_hole64_size: u64::MAX, ..base.clone() },
    ];

    for shape in refused {
        assert!(matches!(acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE), Err(AcpiError::Unsupported { .. })), "{shape:?}");
    }
    assert!(acpi::tables(&VmShape { num_verity_volumes: 25, ..base }, AcpiProfile::SOFTWARE_TEE).is_ok());
}
