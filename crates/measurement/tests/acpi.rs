//! The generated ACPI files against those of QEMU: captured ones of four releases, and live QEMUs as oracles.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic on purpose and say why they do not run")]

mod qtest;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use dstack_measurement::acpi::{self, AcpiDigests, AcpiError, AcpiProfile, AcpiTables, InterruptTrigger, PciWindow};
use dstack_measurement::{HostShareMode, QemuVersion, RootDisk, VmShape, sha384};
use qtest::Qemu;
use serde::{Deserialize, Serialize};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// The releases with captured files, by the name of their file in `testdata/acpi`. Both builds of 10.0 gave the same bytes.
const CAPTURED: [(&str, QemuVersion); 5] = [
    ("qemu-8.2.2-ubuntu", QemuVersion::new(8, 2, 2)),
    ("qemu-10.0", QemuVersion::new(10, 0, 2)),
    ("qemu-10.0", QemuVersion::new(10, 0, 13)),
    ("qemu-11.0.0-rc1-windows", WINDOWS_BUILD),
    ("qemu-11.1.3", QemuVersion::new(11, 1, 3)),
];

/// What the first release candidate of 11.0 calls itself. The only build of it that could be had is one for Windows, which runs under Wine.
const WINDOWS_BUILD: QemuVersion = QemuVersion::new(10, 2, 91);
/// What that build cannot do: 9p, and more memory than the machine has.
const NOT_ON_WINDOWS: [&str; 2] = ["share-9p", "memory-960gib"];

/// The release that `version` is, or becomes.
fn release_of(version: QemuVersion) -> QemuVersion {
    if version == WINDOWS_BUILD { QemuVersion::new(11, 0, 0) } else { version }
}

/// The profile of a machine of `version` without TDX that no firmware has touched.
fn profile_of(version: QemuVersion) -> AcpiProfile {
    let release = release_of(version);
    match (release.major, release.minor) {
        (8, 2) => AcpiProfile::ubuntu_8_2(PciWindow::Unassigned),
        (10, 0) => AcpiProfile::qemu_10_0(PciWindow::Unassigned),
        (11, 0) => AcpiProfile::qemu_11_0(PciWindow::Unassigned),
        (11, 1) => AcpiProfile::qemu_11_1(PciWindow::Unassigned),
        _ => panic!("no profile for {version}"),
    }
}

struct Case {
    name: &'static str,
    shape: VmShape,
}

/// What QEMU offered for one case.
#[derive(Serialize, Deserialize)]
struct Capture {
    name: String,
    arguments: Vec<String>,
    /// Length of the file; zeros follow the bytes in `tables`.
    tables_len: usize,
    tables: String,
    rsdp: String,
    loader_len: usize,
    loader: String,
}

impl Capture {
    fn new(name: &str, arguments: Vec<String>, files: &AcpiTables) -> Self {
        let trimmed = |bytes: &[u8]| hex::encode(&bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]);
        Self {
            name: name.to_owned(),
            arguments,
            tables_len: files.tables.len(),
            tables: trimmed(&files.tables),
            rsdp: hex::encode(&files.rsdp),
            loader_len: files.loader.len(),
            loader: trimmed(&files.loader),
        }
    }

    fn files(&self) -> AcpiTables {
        let padded = |text: &str, len| {
            let mut bytes = hex::decode(text).unwrap();
            bytes.resize(len, 0);
            bytes
        };
        AcpiTables {
            tables: padded(&self.tables, self.tables_len),
            rsdp: hex::decode(&self.rsdp).unwrap(),
            loader: padded(&self.loader, self.loader_len),
        }
    }
}

/// Every shape that is compared.
fn cases(version: QemuVersion) -> Vec<Case> {
    let shape = |cpus: u32, memory_mib: u64, volumes: u32, nics: u32| VmShape {
        num_verity_volumes: volumes,
        num_nics: nics,
        // Early releases have it on unless told otherwise.
        pic: false,
        ..VmShape::new(cpus, memory_mib * MIB, release_of(version)).unwrap()
    };
    let gpus = |gpus, switches| VmShape { num_gpus: gpus, num_nvswitches: switches, ..shape(2, 4096, 0, 1) };
    let case = |name, shape| Case { name, shape };
    let all = vec![
        case("cpu1-mem2048-vol0-nic1", shape(1, 2048, 0, 1)),
        case("cpu2-mem2048-vol1-nic1", shape(2, 2048, 1, 1)),
        case("cpu4-mem4096-vol2-nic2", shape(4, 4096, 2, 2)),
        case("cpu1-mem1024-vol0-nic0", shape(1, 1024, 0, 0)),
        case("cpu8-mem3072-vol24-nic2", shape(8, 3072, 24, 2)),
        case("cpu3-mem2815-vol0-nic1", shape(3, 2815, 0, 1)),
        case("cpu255-mem2816-vol0-nic1", shape(255, 2816, 0, 1)),
        case("cpu9-mem16384-vol0-nic1", shape(9, 16384, 0, 1)),
        case("nics5", shape(1, 2048, 0, 5)),
        case("hotplug-off", VmShape { hotplug_off: true, ..shape(2, 4096, 1, 1) }),
        case("pic-on", VmShape { pic: true, ..shape(2, 2048, 0, 1) }),
        case("hole64-64g", VmShape { pci_hole64_size: 64 * GIB, ..shape(1, 2048, 0, 1) }),
        case("share-9p", VmShape { host_share: HostShareMode::NineP, ..shape(1, 2048, 0, 1) }),
        case("share-vvfat", VmShape { host_share: HostShareMode::Vvfat, ..shape(1, 2048, 0, 1) }),
        case("root-cdrom", VmShape { root_disk: RootDisk::Cdrom, ..shape(1, 2048, 0, 1) }),
        case("memory-960gib", shape(1, 960 << 10, 0, 1)),
        case("hugepages", VmShape { hugepages: true, ..shape(3, 4096, 0, 1) }),
        case("hugepages-no-high-memory", VmShape { hugepages: true, ..shape(1, 2048, 0, 1) }),
        case("gpu1", gpus(1, 0)),
        case("gpu1-hotplug-off", VmShape { hotplug_off: true, ..gpus(1, 0) }),
        case("gpu8-nvswitch4", gpus(8, 4)),
        case("gpu8-nvswitch4-hotplug-off", VmShape { hotplug_off: true, pci_hole64_size: 1 << 38, ..gpus(8, 4) }),
        case("nvswitch2", gpus(0, 2)),
        case("hugepages-gpu1", VmShape { hugepages: true, ..gpus(1, 0) }),
        case("hugepages-gpu8-nvswitch4", VmShape { hugepages: true, ..gpus(8, 4) }),
        case("hugepages-gpu2-nvswitch1-hotplug-off", VmShape { hugepages: true, hotplug_off: true, ..gpus(2, 1) }),
        case("hugepages-gpu2-full-bus", VmShape { hugepages: true, num_verity_volumes: 4, ..gpus(2, 3) }),
    ];
    all.into_iter().filter(|case| version != WINDOWS_BUILD || !NOT_ON_WINDOWS.contains(&case.name)).collect()
}

/// QEMU's arguments for a shape in the order of the reference, with stand-ins where the host lacks a device: every PCI function gets the
/// same object in the tables. `DISK` stands for a file.
fn arguments(shape: &VmShape, version: QemuVersion) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |values: &[&str]| out.extend(values.iter().map(|value| (*value).to_owned()));
    let on_off = |on| if on { "on" } else { "off" };
    add(&["-nodefaults", "-nographic", "-serial", "null", "-monitor", "none"]);
    // An AMD vCPU would move memory around the hole that AMD reserves below 1 TiB; no TD has one.
    add(&["-cpu", "qemu64,vendor=GenuineIntel"]);
    add(&["-smp", &shape.cpu_count.to_string(), "-m", &format!("{}M", shape.memory_size / MIB)]);
    if shape.hotplug_off {
        add(&["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]);
    }
    if shape.pci_hole64_size != 0 {
        add(&["-global", &format!("q35-pcihost.pci-hole64-size={}", shape.pci_hole64_size)]);
    }
    let mut disk = |id: &str| {
        add(&["-drive", &format!("file=DISK,if=none,id={id},format=raw,readonly=on")]);
        add(&["-device", &format!("virtio-blk-pci,drive={id}")]);
    };
    if shape.root_disk == RootDisk::Virtio {
        disk("hd0");
    }
    disk("hd1");
    (0..shape.num_verity_volumes).for_each(|index| disk(&format!("vol{index}")));
    if shape.root_disk == RootDisk::Cdrom {
        add(&["-cdrom", "DISK"]);
    }
    for index in 0..shape.num_nics {
        add(&["-netdev", &format!("user,id=net{index}"), "-device", &format!("virtio-net-pci,netdev=net{index},romfile=")]);
    }
    // Stand for vhost-vsock-pci, which needs a kernel device, and for the share.
    add(&["-device", "virtio-rng-pci"]);
    match shape.host_share {
        HostShareMode::NineP => {
            add(&["-fsdev", "local,id=fs0,path=/,security_model=none", "-device", "virtio-9p-pci,fsdev=fs0,mount_tag=s"])
        }
        HostShareMode::Vvfat | HostShareMode::Vhd => add(&["-device", "virtio-balloon-pci"]),
    }
    let reserve = if version == WINDOWS_BUILD { "" } else { ",reserve=off" };
    let memory = format!("memory-backend-ram,id=mem0,size={}{reserve}", shape.memory_size);
    let node = format!("node,nodeid=0,cpus=0-{},memdev=mem0", shape.cpu_count - 1);
    let backend = if shape.hugepages { "" } else { ",memory-backend=mem0" };
    add(&["-object", &memory]);
    if shape.hugepages {
        add(&["-numa", &node]);
    }
    add(&["-machine", &format!("q35,kernel-irqchip=split,hpet=off,smm=off,pic={}{backend}", on_off(shape.pic))]);
    let gpu_bus = if shape.hugepages { "pcie.node0" } else { "pcie.0" };
    if shape.hugepages && shape.num_gpus > 0 {
        add(&["-device", "pxb-pcie,id=pcie.node0,bus=pcie.0,addr=0xa,numa_node=0,bus_nr=5"]);
    }
    for index in 1..=shape.num_gpus + shape.num_nvswitches {
        let bus = if index <= shape.num_gpus { gpu_bus } else { "pcie.0" };
        add(&["-device", &format!("pcie-root-port,id=pci.{index},bus={bus},chassis={index}")]);
        // Stands for vfio-pci.
        add(&["-device", &format!("pci-testdev,bus=pci.{index}")]);
    }
    out
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/acpi").join(name)
}

fn must_unpack(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(testdata(name)).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn must_load(release: &str) -> Vec<Capture> {
    serde_json::from_slice(&must_unpack(&format!("{release}.json.gz"))).unwrap()
}

fn must_save(release: &str, captures: &[Capture]) {
    let file = std::fs::File::create(testdata(&format!("{release}.json.gz"))).unwrap();
    let mut writer = flate2::GzBuilder::new().write(file, flate2::Compression::best());
    writer.write_all(&serde_json::to_vec_pretty(captures).unwrap()).unwrap();
    writer.finish().unwrap();
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
    for (release, version) in CAPTURED {
        let captures = must_load(release);
        let cases = cases(version);
        assert_eq!(captures.len(), cases.len(), "{release}");
        for (capture, case) in captures.iter().zip(cases) {
            assert_eq!((capture.name.as_str(), &capture.arguments), (case.name, &arguments(&case.shape, version)), "{release}");

            let generated = acpi::tables(&case.shape, profile_of(version)).unwrap();

            assert_same(&format!("{release} {}", case.name), &generated, &capture.files());
        }
    }
}

#[test]
fn generated_files_equal_those_a_booted_firmware_has_read() {
    let window = PciWindow::Assigned { first: 0xc0_0000_0000, last: 0xc0_0001_3fff };
    let shape = VmShape::new(1, 2048 * MIB, QemuVersion::new(10, 0, 2)).unwrap();
    let read = |file| must_unpack(&format!("booted-ovmf.{file}.gz"));

    let generated = acpi::tables(&shape, AcpiProfile::qemu_10_0(window)).unwrap();

    assert_same("booted-ovmf", &generated, &AcpiTables { tables: read("tables"), rsdp: read("rsdp"), loader: read("loader") });
}

/// QEMUs to compare with: the installed one, and those named by `DSTACK_ORACLE_QEMU`, separated by commas.
fn oracles() -> Vec<String> {
    let named = std::env::var("DSTACK_ORACLE_QEMU").unwrap_or_default();
    let named = named.split(',').filter(|path| !path.is_empty()).map(str::to_owned);
    std::iter::once(qtest::INSTALLED.to_owned()).chain(named).collect()
}

#[test]
fn generated_files_equal_those_of_a_live_qemu() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(MIB).unwrap();
    let is_capturing = std::env::var_os("DSTACK_CAPTURE_ACPI").is_some();
    for program in oracles() {
        let Some(version) = qtest::version_of(&program) else {
            eprintln!("not run: {program} is not installed");
            continue;
        };
        let Some((release, _)) = CAPTURED.into_iter().find(|(_, known)| *known == version) else {
            eprintln!("not run: {program} is {version}, the tables are modelled after {CAPTURED:?}");
            continue;
        };
        // One live case shows that the captures are of this program; the rest is captured.
        let cases: Vec<Case> = cases(version).into_iter().filter(|case| is_capturing || case.name == "gpu1").collect();
        let mut captures = Vec::new();
        for case in cases {
            let arguments = arguments(&case.shape, version);
            let disk = disk.path().display().to_string();
            // An emulated machine has no interrupt controller in the kernel that could be split.
            let split = if qtest::accelerator() == "kvm" { "kernel-irqchip=split," } else { "" };
            let real: Vec<String> =
                arguments.iter().map(|value| value.replace("DISK", &disk).replace("kernel-irqchip=split,", split)).collect();
            let mut qemu = Qemu::start(&program, &real);
            qemu.program_like_ovmf();
            let files = qemu.acpi_files();
            captures.push(Capture::new(case.name, arguments, &files));
            if !is_capturing {
                assert_same(case.name, &acpi::tables(&case.shape, profile_of(version)).unwrap(), &files);
            }
        }
        if is_capturing {
            must_save(release, &captures);
        }
    }
}

#[test]
fn digests_are_those_of_the_files() {
    let files = software_tee(&VmShape::new(1, 2048 * MIB, QemuVersion::new(10, 0, 2)).unwrap());
    let digests = files.digests();

    assert_eq!(digests.tables, sha384(&files.tables));
    assert_eq!(digests.rsdp, sha384(&files.rsdp));
    assert_eq!(digests.loader, sha384(&files.loader));
}

#[test]
fn whatever_shows_in_the_tables_changes_a_digest() {
    let base = VmShape { num_verity_volumes: 1, ..VmShape::new(2, 2048 * MIB, QemuVersion::new(10, 0, 2)).unwrap() };
    let digests = |shape: &VmShape| software_tee(shape).digests();
    let changed = [
        VmShape { cpu_count: 3, ..base.clone() },
        VmShape { memory_size: 4 * GIB, ..base.clone() },
        VmShape { num_nics: 2, ..base.clone() },
        VmShape { num_verity_volumes: 2, ..base.clone() },
        VmShape { hotplug_off: true, ..base.clone() },
        VmShape { pic: true, ..base.clone() },
        VmShape { pci_hole64_size: GIB, ..base.clone() },
        VmShape { hugepages: true, ..base.clone() },
        VmShape { num_gpus: 1, ..base.clone() },
        VmShape { num_nvswitches: 2, ..base.clone() },
        VmShape { root_disk: RootDisk::Cdrom, ..base.clone() },
    ];

    for shape in &changed {
        assert_ne!(digests(shape), digests(&base), "{shape:?}");
    }
    let gpu = &changed[8];
    assert_ne!(digests(&VmShape { hugepages: true, ..gpu.clone() }), digests(gpu));
}

#[test]
fn machines_that_are_not_modelled_are_refused() {
    let base = VmShape::new(1, 2048 * MIB, QemuVersion::new(10, 0, 2)).unwrap();
    let refused = [
        VmShape { swtpm: true, ..base.clone() },
        VmShape { cpu_count: 256, ..base.clone() },
        VmShape { memory_size: 961 * GIB, ..base.clone() },
        VmShape { num_verity_volumes: 26, ..base.clone() },
        VmShape { num_nics: u32::MAX, ..base.clone() },
        VmShape { num_gpus: 26, ..base.clone() },
        VmShape { num_gpus: u32::MAX, num_nvswitches: 1, ..base.clone() },
        VmShape { hugepages: true, num_gpus: 1, num_verity_volumes: 5, ..base.clone() },
        VmShape { hugepages: true, num_gpus: 1, num_nvswitches: 25, ..base.clone() },
        VmShape { pci_hole64_size: u64::MAX, ..base.clone() },
    ];

    for shape in refused {
        assert!(matches!(acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE), Err(AcpiError::Unsupported { .. })), "{shape:?}");
    }
    let full = [
        VmShape { num_verity_volumes: 25, ..base.clone() },
        VmShape { num_gpus: 20, num_nvswitches: 5, ..base.clone() },
        VmShape { hugepages: true, num_gpus: 99, num_nvswitches: 24, ..base.clone() },
    ];
    for shape in full {
        assert!(acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).is_ok(), "{shape:?}");
    }
}

#[test]
fn gpus_that_a_firmware_has_placed_behind_another_host_bridge_are_refused() {
    let shape = VmShape { hugepages: true, num_gpus: 1, ..VmShape::new(1, 2048 * MIB, QemuVersion::new(10, 0, 2)).unwrap() };

    assert!(acpi::tables(&shape, AcpiProfile::qemu_10_0(PciWindow::Unassigned)).is_ok());
    assert!(matches!(acpi::tables(&shape, AcpiProfile::qemu_10_0(PciWindow::OVMF_46_BITS)), Err(AcpiError::Unsupported { .. })));
}

#[test]
fn a_release_that_nobody_could_look_at_is_refused() {
    let of = |major, minor| AcpiProfile::of(QemuVersion::new(major, minor, 0), InterruptTrigger::Edge, PciWindow::Unassigned);

    for (major, minor) in [(8, 2), (9, 2), (10, 0), (11, 0), (11, 1)] {
        assert!(of(major, minor).is_ok(), "{major}.{minor}");
    }
    for (major, minor) in [(8, 0), (8, 1), (9, 0), (9, 1), (9, 3), (10, 1), (10, 2), (11, 2), (12, 0)] {
        assert_eq!(of(major, minor), Err(AcpiError::UnknownRelease(QemuVersion::new(major, minor, 0))));
    }
}

/// A TD of every modelled release with the window that TDX machines have.
fn tds() -> Vec<(VmShape, AcpiProfile)> {
    let releases = [(8, 2), (9, 2), (10, 0), (11, 0), (11, 1)];
    let triggers = [InterruptTrigger::Edge, InterruptTrigger::Level];
    let td = |(major, minor), trigger| {
        let version = QemuVersion::new(major, minor, 0);
        let shape = VmShape { hotplug_off: true, ..VmShape::new(2, 4 * GIB, version).unwrap() };
        (shape, AcpiProfile::of(version, trigger, PciWindow::OVMF_46_BITS).unwrap())
    };
    releases.into_iter().flat_map(|release| triggers.map(|trigger| td(release, trigger))).collect()
}

#[test]
fn tables_of_a_known_machine_are_recognised_whatever_release_it_is_said_to_be() {
    for (shape, profile) in tds() {
        let digests = acpi::tables(&shape, profile).unwrap().digests();

        assert_eq!(acpi::recognise(&shape, &digests), Some(profile));
        let other = VmShape { qemu_version: QemuVersion::new(10, 2, 0), ..shape };
        let recognised = acpi::recognise(&other, &digests).unwrap();
        let as_recognised = tds().into_iter().find(|(_, known)| *known == recognised).unwrap();
        assert_eq!(acpi::tables(&as_recognised.0, recognised).unwrap().digests(), digests);
    }
}

#[test]
fn tables_with_any_other_file_or_of_another_vm_are_not_recognised() {
    let (shape, profile) = tds().remove(0);
    let good = acpi::tables(&shape, profile).unwrap().digests();
    let flipped = |digest: [u8; 48]| digest.map(|byte| byte ^ 1);

    for other in [
        AcpiDigests { loader: flipped(good.loader), ..good },
        AcpiDigests { rsdp: flipped(good.rsdp), ..good },
        AcpiDigests { tables: flipped(good.tables), ..good },
    ] {
        assert_eq!(acpi::recognise(&shape, &other), None);
    }
    assert_eq!(acpi::recognise(&VmShape { cpu_count: 3, ..shape.clone() }, &good), None);
    assert_eq!(acpi::recognise(&VmShape { swtpm: true, ..shape }, &good), None, "not modelled");
}
