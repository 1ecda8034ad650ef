//! The kernel header as QEMU writes it, with the installed QEMU as the oracle.
#![allow(clippy::unwrap_used, clippy::print_stderr, dead_code, reason = "tests panic on purpose and say why they do not run")]

mod qtest;

use dstack_measurement::authenticode::{self, PeError};
use dstack_measurement::kernel::{self, KernelError, KernelPlacement, SetupHeader};
use dstack_measurement::{QemuVersion, VmShape, sha384};
use dstack_testkit::boot_files::{self, BootHeader, HEADERS_LEN, PE_AT};
use qtest::Qemu;

const FW_CFG_KERNEL_SIZE: u16 = 0x08;
const FW_CFG_KERNEL_DATA: u16 = 0x11;
const FW_CFG_SETUP_SIZE: u16 = 0x17;
const FW_CFG_SETUP_DATA: u16 = 0x18;
const CERTIFICATE_ENTRY_AT: usize = PE_AT + 24 + 144;

fn image(protocol: u16, xload_flags: u16, initrd_max: u32) -> Vec<u8> {
    boot_files::kernel(BootHeader { protocol, xload_flags, initrd_max })
}

fn placement(memory_size: u64, header: SetupHeader) -> KernelPlacement {
    KernelPlacement { memory_size, header }
}

/// What QEMU offers to the firmware as the kernel.
fn must_load(directory: &std::path::Path, kernel: &[u8], initrd: &[u8], memory_mib: u64) -> Vec<u8> {
    let (kernel_path, initrd_path) = (directory.join("kernel"), directory.join("initrd"));
    std::fs::write(&kernel_path, kernel).unwrap();
    std::fs::write(&initrd_path, initrd).unwrap();
    let (kernel_path, initrd_path) = (kernel_path.display().to_string(), initrd_path.display().to_string());
    let arguments = ["-nodefaults", "-machine", "q35", "-m", &memory_mib.to_string(), "-kernel", &kernel_path, "-initrd", &initrd_path];
    let mut qemu = Qemu::start(qtest::INSTALLED, &arguments.map(str::to_owned));
    let mut item = |size_key, data_key| {
        let size = u32::from_le_bytes(qemu.item(size_key, 4).try_into().unwrap());
        qemu.item(data_key, size as usize)
    };
    [item(FW_CFG_SETUP_SIZE, FW_CFG_SETUP_DATA), item(FW_CFG_KERNEL_SIZE, FW_CFG_KERNEL_DATA)].concat()
}

#[test]
fn measures_what_the_installed_qemu_offers_to_the_firmware() {
    let Some(version) = qtest::version_of(qtest::INSTALLED) else {
        eprintln!("not run: qemu-system-x86_64 is not installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let initrd = vec![7_u8; 12_345];
    // Modern kernel, no five-level paging, above 4 GiB not allowed, an old protocol.
    for (protocol, xload_flags, initrd_max) in
        [(0x20f, 0x7f, 0x7fff_ffff), (0x20f, 0x3f, 0x7fff_ffff), (0x20c, 0, 0x1fff_ffff), (0x203, 0, 0x37ff_ffff)]
    {
        for memory_mib in [512, 2048, 4096] {
            let kernel = image(protocol, xload_flags, initrd_max);
            let offered = must_load(directory.path(), &kernel, &initrd, memory_mib);

            let measured = kernel::measure(&kernel, initrd.len(), "", placement(memory_mib << 20, SetupHeader::Qemu)).unwrap();

            assert_ne!(offered, kernel, "QEMU {version} patches a kernel without confidential guest");
            assert_eq!(measured, authenticode::sha384(&offered).unwrap(), "protocol {protocol:#x}, {memory_mib} MiB");
        }
    }
}

#[test]
fn document_and_qemu_agree_for_kernels_with_five_level_paging_only() {
    let measure = |kernel: &[u8], header| kernel::measure(kernel, 5000, "", placement(1 << 31, header)).unwrap();
    let (modern, older) = (image(0x20f, 0x7f, 0x7fff_ffff), image(0x20f, 0x3f, 0x7fff_ffff));

    assert_eq!(measure(&modern, SetupHeader::Document), measure(&modern, SetupHeader::Qemu));
    assert_ne!(measure(&older, SetupHeader::Document), measure(&older, SetupHeader::Qemu));
}

#[test]
fn qemu_from_10_2_on_leaves_the_kernel_as_it_is() {
    let kernel = image(0x20f, 0x7f, 0x7fff_ffff);
    let measure = |version| {
        let shape = VmShape::new(1, 1 << 31, version).unwrap();
        kernel::measure(&kernel, 5000, "", KernelPlacement::from(&shape)).unwrap()
    };

    assert_eq!(measure(QemuVersion::new(10, 2, 0)), authenticode::sha384(&kernel).unwrap());
    assert_ne!(measure(QemuVersion::new(10, 1, 5)), authenticode::sha384(&kernel).unwrap());
}

#[test]
fn the_digest_covers_all_but_checksum_and_certificates() {
    let plain = image(0x20f, 0x7f, 0x7fff_ffff);
    let mut signed = plain.clone();
    let len = signed.len() as u32;
    signed[PE_AT + 24 + 64..PE_AT + 24 + 68].copy_from_slice(&[1, 2, 3, 4]);
    signed[CERTIFICATE_ENTRY_AT..CERTIFICATE_ENTRY_AT + 8].copy_from_slice(&[len.to_le_bytes(), 16_u32.to_le_bytes()].concat());
    signed.extend([0xaa; 16]);
    let digest = authenticode::sha384(&plain).unwrap();

    assert_eq!(authenticode::sha384(&signed).unwrap(), digest);
    for at in [2, 0x300, HEADERS_LEN + 0xfff] {
        let mut flipped = plain.clone();
        flipped[at] ^= 1;
        assert_ne!(authenticode::sha384(&flipped).unwrap(), digest, "byte {at:#x}");
    }
    let trailing = [plain.as_slice(), &[1]].concat();
    let padded = [plain.as_slice(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_ne!(authenticode::sha384(&trailing).unwrap(), digest);
    assert_eq!(authenticode::sha384(&trailing).unwrap(), authenticode::sha384(&padded).unwrap(), "padded to 8 bytes");
}

#[test]
fn the_digest_is_the_one_of_the_standard_layout() {
    let image = image(0x20f, 0x7f, 0x7fff_ffff);
    let (checksum_at, after_entry) = (PE_AT + 24 + 64, CERTIFICATE_ENTRY_AT + 8);

    let hashed = [&image[..checksum_at], &image[checksum_at + 4..CERTIFICATE_ENTRY_AT], &image[after_entry..]].concat();

    assert_eq!(authenticode::sha384(&image).unwrap(), sha384(&hashed));
}

#[test]
fn crafted_images_are_refused() {
    let good = image(0x20f, 0x7f, 0x7fff_ffff);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        authenticode::sha384(&image)
    };
    let section = PE_AT + 24 + 240;
    let far = &u32::MAX.to_le_bytes();

    assert!(authenticode::sha384(&good).is_ok());
    assert!(matches!(with(0, b"ZM"), Err(PeError { offset: 0, .. })));
    assert!(with(0x3c, far).is_err(), "header outside");
    assert!(with(PE_AT + 6, &[0xff, 0xff]).is_err(), "too many sections");
    assert!(with(PE_AT + 20, &[0xff, 0xff]).is_err(), "optional header too long");
    assert!(with(PE_AT + 20, &[100, 0]).is_err(), "optional header too short");
    assert!(with(PE_AT + 24, &[0, 0]).is_err(), "unknown magic");
    assert!(with(PE_AT + 24 + 60, far).is_err(), "headers longer than the file");
    assert!(with(PE_AT + 24 + 60, &[16, 0, 0, 0]).is_err(), "headers too short");
    assert!(with(section + 16, far).is_err(), "section too long");
    assert!(with(section + 20, far).is_err(), "section outside");
    assert!(with(CERTIFICATE_ENTRY_AT, &[[0, 0, 0, 0], *far].concat()).is_err(), "certificates longer than the file");
    assert!(with(CERTIFICATE_ENTRY_AT, &[[0, 4, 0, 0], [0, 0x10, 0, 0]].concat()).is_err(), "certificates instead of the content");
}

#[test]
fn kernels_that_qemu_would_load_otherwise_are_refused() {
    let measure = |image: &[u8], initrd, cmdline| kernel::measure(image, initrd, cmdline, placement(64 << 20, SetupHeader::Qemu));
    let good = image(0x20f, 0x7f, 0x7fff_ffff);
    let mut low = good.clone();
    low[0x211] = 0;
    let mut no_header = good.clone();
    no_header[0x202] = 0;

    assert!(measure(&good, 1 << 20, "console=ttyS0").is_ok());
    assert_eq!(measure(&low, 0, ""), Err(KernelError::UnsupportedProtocol { protocol: 0x20f }));
    assert_eq!(measure(&image(0x202, 0, 0), 0, ""), Err(KernelError::UnsupportedProtocol { protocol: 0x202 }));
    assert_eq!(measure(&no_header, 0, ""), Err(KernelError::NoSetupHeader));
    assert_eq!(measure(&good, 0, "quiet vga=791"), Err(KernelError::UnsupportedVideoMode));
    assert!(matches!(measure(&good, 64 << 20, ""), Err(KernelError::InitrdTooLarge { .. })));
    assert!(matches!(measure(&good[..0x300], 0, ""), Err(KernelError::Pe(_))));
    assert_eq!(measure(&good[..0x210], 0, ""), Err(KernelError::NoSetupHeader));
}
