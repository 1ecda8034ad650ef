//! Explanations as people and scripts read them: each case changes one thing of a launch.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::io::Read as _;

use dstack_event_log::Event;
use dstack_measurement::{BootEvent, PageAddOrder, QemuVersion, VmShape, replay, sha384, tdx::OvmfVariant};

use super::{
    args::{Host, MachineArgs, TableArgs},
    explain::{Case, Explanation, explain},
    image::{ImageDir, Material},
    machine,
    observed::ObservedTd,
    predict::{HostPart, Prediction, predict},
    render,
    report::Report,
};
use crate::output::Palette;

const METADATA: &str =
    r#"{"bios":"ovmf.fd","kernel":"bzImage","initrd":"initrd","rootfs":"rootfs","cmdline":"console=ttyS0","version":"1"}"#;

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

fn firmware() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/measurement/tests/testdata/tdx/virtee_OVMF.inteltdx.fd.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// An image directory of three files and metadata.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("ovmf.fd", &firmware());
        put("bzImage", &kernel());
        put("initrd", &[7; 5000]);
        put("metadata.json", METADATA.as_bytes());
        Self { dir }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> &Self {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
        self
    }

    fn material(&self) -> Material {
        Material::read(&ImageDir::open(&self.dir.path().display().to_string()).unwrap(), OvmfVariant::Pre202505).unwrap()
    }
}

fn shape() -> VmShape {
    VmShape { hotplug_off: true, ..VmShape::new(2, 4 << 30, QemuVersion::new(9, 2, 1)).unwrap() }
}

fn tables() -> TableArgs {
    TableArgs { host: None, interrupts: None, pci_memory: None, ovmf: None, smbios: None }
}

fn host(shape: &VmShape) -> HostPart {
    HostPart { tables: machine::tables(&tables(), shape, false).unwrap(), ovmf: OvmfVariant::Pre202505, smbios: None }
}

/// What a machine would show that was launched as `prediction` says.
fn observed(prediction: &Prediction) -> ObservedTd {
    observed_with(prediction, |events| events)
}

fn observed_with(prediction: &Prediction, change: impl FnOnce(Vec<BootEvent>) -> Vec<BootEvent>) -> ObservedTd {
    let events = change(prediction.events.clone());
    let [rtmr0, rtmr1, rtmr2] = replay(&events);
    let events = events
        .iter()
        .map(|event| Event { event_payload: event.payload.clone(), ..Event::boot(event.imr, event.event_type, &event.digest, "") })
        .collect();
    ObservedTd { registers: [prediction.registers[0].unwrap(), rtmr0, rtmr1, rtmr2], events, replays: [true; 3], config: None }
}

/// Explains a launch of `theirs` in `their_shape` to somebody who expects `ours` in [`shape`].
fn explained(ours: &Material, theirs: &Material, their_shape: &VmShape) -> Explanation {
    let launched = predict(theirs, their_shape, host(their_shape)).unwrap();
    explained_of(ours, &observed(&launched))
}

fn explained_of(ours: &Material, observed: &ObservedTd) -> Explanation {
    let shape = shape();
    let host = host(&shape);
    let prediction = predict(ours, &shape, host).unwrap();
    explain(&Case { observed, prediction: &prediction, material: ours, shape: &shape, host })
}

fn text(explanation: Explanation) -> String {
    let shape = shape();
    let report = Report {
        image: "dstack-0.7.0".to_owned(),
        tee: "tdx",
        vm: machine::describe(&shape),
        tables: Some(host(&shape).tables.describe(&shape)),
        explanation: Some(explanation),
        ..Report::default()
    };
    render::text(Palette::PLAIN, &report)
}

#[test]
fn the_same_launch_is_the_same() {
    let image = Bench::new().material();

    let explanation = explained(&image, &image, &shape());

    assert!(explanation.matches && explanation.is_complete);
    insta::assert_snapshot!("same", text(explanation));
}

#[test]
fn another_kernel_is_named_and_the_rest_is_cleared() {
    let bench = Bench::new();
    let ours = bench.material();
    let mut other = kernel();
    other[0x300] ^= 1;

    let explanation = explained(&ours, &bench.replace("bzImage", &other).material(), &shape());

    assert_eq!(
        explanation.summary,
        "RTMR1 differs at the kernel: this machine booted another kernel.\n\
         MRTD, RTMR0 and RTMR2 are as expected: the firmware is the image's; \
         memory, devices, UEFI variables and ACPI tables are as expected; command line and initrd are the image's."
    );
    insta::assert_snapshot!("kernel", text(explanation.clone()));
    insta::assert_json_snapshot!("kernel-json", explanation);
}

#[test]
fn another_initrd_and_another_command_line_are_told_apart() {
    let bench = Bench::new();
    let ours = bench.material();

    let initrd = explained(&ours, &bench.replace("initrd", &[8; 5000]).material(), &shape());
    assert_eq!(initrd.registers[3].meaning, "at the initrd: this machine booted with another initrd");
    assert_eq!(initrd.registers[2].equal, Some(true), "an initrd of the same length leaves the kernel as it is");

    bench.replace("initrd", &[7; 5000]).replace("metadata.json", METADATA.replace("ttyS0", "ttyS1").as_bytes());
    let cmdline = explained(&ours, &bench.material(), &shape());
    assert_eq!(cmdline.registers[3].meaning, "at the kernel command line: this machine booted with another kernel command line");
}

#[test]
fn a_vm_of_another_size_is_recognised() {
    let image = Bench::new().material();
    let meanings = |their_shape: &VmShape| -> Vec<String> {
        explained(&image, &image, their_shape).registers[1].differences.iter().map(|difference| difference.meaning.clone()).collect()
    };

    assert_eq!(
        meanings(&VmShape { cpu_count: 8, ..shape() }),
        ["this machine has 8 vCPUs, not 2 vCPUs (--vcpus)", "for the same reason", "for the same reason",]
    );
    assert_eq!(meanings(&VmShape { memory_size: 8 << 30, ..shape() })[0], "this machine has 8 GiB of memory, not 4 GiB (--memory)");
    assert!(meanings(&VmShape { num_gpus: 1, ..shape() })[0].starts_with("this machine has 1 GPU or NVSwitch"));
    assert!(meanings(&VmShape { num_nics: 3, ..shape() })[0].starts_with("this machine has 3 network card or volumes in sum"));
    insta::assert_snapshot!("vcpus", text(explained(&image, &image, &VmShape { cpu_count: 8, ..shape() })));
}

#[test]
fn a_host_that_does_things_otherwise_is_recognised() {
    let image = Bench::new().material();
    let meanings = |their_shape: &VmShape, their_host: HostPart| {
        let launched = predict(&image, their_shape, their_host).unwrap();
        explained_of(&image, &observed(&launched)).registers[1].meaning.clone()
    };

    let mut edge = host(&shape());
    edge.tables.trigger = dstack_measurement::acpi::InterruptTrigger::Edge;
    assert!(meanings(&shape(), edge).ends_with("its QEMU reports edge triggered interrupts (--interrupts edge)"));
    let mut software = host(&shape());
    software.tables.host = Host::SoftwareTee;
    assert!(meanings(&shape(), software).contains("the software TEE of a development stack"));
    let other_qemu = VmShape { qemu_version: QemuVersion::new(10, 0, 2), ..shape() };
    assert!(meanings(&other_qemu, host(&other_qemu)).ends_with("they are those of QEMU 10.0 (--qemu-version)"));
}

#[test]
fn the_other_page_order_is_no_other_firmware() {
    let image = Bench::new().material();

    let explanation = explained(&image, &image, &VmShape { page_add_order: PageAddOrder::TwoPass, ..shape() });

    assert!(explanation.registers[0].meaning.starts_with("the firmware is the image's, but QEMU measured its pages in two passes"));
}

#[test]
fn another_firmware_is_said_to_be_one() {
    let image = Bench::new().material();
    let shape = shape();
    let mut launched = predict(&image, &shape, host(&shape)).unwrap();
    launched.registers[0] = Some([3; 48]);

    assert_eq!(explained_of(&image, &observed(&launched)).registers[0].meaning, "this machine started another firmware");
}

#[test]
fn a_kernel_that_qemu_left_alone_is_the_images_kernel() {
    let image = Bench::new().material();
    let shape = shape();
    let launched = predict(&image, &shape, host(&shape)).unwrap();
    let untouched = image.kernel(shape.memory_size, dstack_measurement::kernel::SetupHeader::Unchanged).unwrap();
    let observed = observed_with(&launched, |mut events| {
        let kernel = events.iter_mut().find(|event| event.name == "kernel").unwrap();
        kernel.digest = untouched;
        events
    });

    assert!(explained_of(&image, &observed).summary.contains("it is the image's kernel, but the firmware got it with its header as it is"));
}

#[test]
fn secure_boot_keys_are_named() {
    let image = Bench::new().material();
    let shape = shape();
    let launched = predict(&image, &shape, host(&shape)).unwrap();
    let observed = observed_with(&launched, |mut events| {
        events.iter_mut().find(|event| event.name == "PK").unwrap().digest = sha384(b"a key");
        events
    });

    let explanation = explained_of(&image, &observed);

    assert_eq!(explanation.registers[1].meaning, "at the PK: the UEFI variable PK is set: Secure Boot is configured in this firmware");
}

#[test]
fn newer_firmware_is_recognised_by_its_log() {
    let image = Bench::new().material();
    let shape = shape();
    let newer = HostPart { ovmf: OvmfVariant::Since202505, smbios: Some([5; 48]), ..host(&shape) };
    let Material::Files(_) = &image else { panic!("files") };
    let theirs = {
        let bench = Bench::new();
        Material::read(&ImageDir::open(&bench.dir.path().display().to_string()).unwrap(), OvmfVariant::Since202505).unwrap()
    };
    let launched = predict(&theirs, &shape, newer).unwrap();

    assert!(explained_of(&image, &observed(&launched)).summary.contains("(--ovmf since202505)"));
}

#[test]
fn a_log_of_another_machine_explains_nothing() {
    let image = Bench::new().material();
    let shape = shape();
    let launched = predict(&image, &shape, host(&shape)).unwrap();
    let mut foreign = observed(&launched);
    foreign.registers[2][0] ^= 1;
    foreign.replays[1] = false;

    assert!(explained_of(&image, &foreign).registers[2].meaning.contains("it is not the log of this machine"));
    foreign.events.clear();
    assert!(explained_of(&image, &foreign).registers[2].meaning.contains("the evidence has no log of it"));
}

#[test]
fn tables_of_an_unknown_release_leave_only_rtmr0_open() {
    let image = Bench::new().material();
    let shape = VmShape { qemu_version: QemuVersion::new(10, 2, 0), ..shape() };

    let prediction = predict(&image, &shape, host(&shape)).unwrap();

    assert!(prediction.gap.as_deref().is_some_and(|gap| gap.contains("QEMU 10.2.0 are not modelled")));
    assert_eq!(prediction.registers.map(|register| register.is_some()), [true, false, true, true]);
}

#[test]
fn options_win_over_the_configuration_of_the_evidence() {
    let config = dstack_manifest::VmConfig { cpu_count: 4, memory_size: 8 << 30, num_gpus: 1, ..Default::default() };
    let args = |vcpus, memory: Option<&str>| MachineArgs {
        vcpus,
        memory: memory.map(str::to_owned),
        qemu: Some("9.2.1".to_owned()),
        nics: None,
        volumes: None,
        gpus: None,
        nvswitches: None,
        hugepages: false,
        hotplug_off: false,
        pic: None,
        page_order: None,
        pci_hole64_size: None,
        host_share: None,
        root_cdrom: false,
        vcpu_type: None,
        guest_features: None,
    };

    let taken = machine::shape(&args(None, None), Some(&config)).unwrap();
    assert_eq!((taken.cpu_count, taken.memory_size, taken.num_gpus), (4, 8 << 30, 1));
    let overridden = machine::shape(&args(Some(16), Some("2G")), Some(&config)).unwrap();
    assert_eq!((overridden.cpu_count, overridden.memory_size, overridden.num_gpus), (16, 2 << 30, 1));
}
