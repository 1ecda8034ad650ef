//! The kernel header as QEMU writes it, with the installed QEMU as the oracle.
#![allow(clippy::unwrap_used, clippy::print_stderr, dead_code, reason = "tests panic on purpose and say why they do not run")]

mod qtest;

use std::io::Write as _;

use dstack_measurement::authenticode::{self, PeError};
use dstack_measurement::kernel::{self, KernelError, KernelPlacement, SetupHeader};
use dstack_measurement::kernel_blob::KernelBlob;
use dstack_measurement::{QemuVersion, VmShape, sha384};
use dstack_testkit::boot_files::{self, BootHeader, HEADERS_LEN, PE_AT};
use lzma_rust2::{LzmaOptions, LzmaWriter};
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
fn the_kernel_stays_as_it_is_from_10_2_on_and_from_10_0_on_for_firmware_that_asks_for_it() {
    let kernel = image(0x20f, 0x7f, 0x7fff_ffff);
    let unchanged = authenticode::sha384(&kernel).unwrap();
    let is_unchanged = |version: QemuVersion, blob| {
        let shape = VmShape::new(1, 1 << 31, version).unwrap();
        kernel::measure(&kernel, 5000, "", KernelPlacement::new(&shape, blob)).unwrap() == unchanged
    };

    for (version, with_patched, with_named) in [
        (QemuVersion::new(8, 2, 2), false, false),
        (QemuVersion::new(9, 2, 9), false, false),
        (QemuVersion::new(10, 0, 0), false, true),
        (QemuVersion::new(10, 1, 5), false, true),
        (QemuVersion::new(10, 2, 0), true, true),
        (QemuVersion::new(11, 1, 3), true, true),
    ] {
        assert_eq!(is_unchanged(version, KernelBlob::Patched), with_patched, "{version}");
        assert_eq!(is_unchanged(version, KernelBlob::Named), with_named, "{version}");
    }
}

#[test]
fn the_installed_qemu_offers_the_file_as_it_is_too() {
    let Some(version) = qtest::version_of(qtest::INSTALLED).filter(|version| version.offers_named_kernel()) else {
        eprintln!("not run: no QEMU of 10.0 or later is installed");
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let kernel = image(0x20f, 0x7f, 0x7fff_ffff);
    std::fs::write(file.path(), &kernel).unwrap();
    let arguments = ["-nodefaults", "-machine", "q35", "-kernel", &file.path().display().to_string()];

    let offered = Qemu::start(qtest::INSTALLED, &arguments.map(str::to_owned)).file("etc/boot/kernel");

    assert_eq!(offered, kernel, "QEMU {version}");
}

/// Firmware whose drivers are `content`, in a compressed section of type `kind`.
fn firmware_with(content: &[u8], kind: u8) -> Vec<u8> {
    let mut compressed = Vec::new();
    let options = LzmaOptions { dict_size: 1 << 20, ..LzmaOptions::with_preset(1) };
    let mut writer = LzmaWriter::new_use_header(&mut compressed, &options, Some(content.len() as u64)).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap();
    let guid = hex::decode("98584eee143959429d6edc7bd79403cf").unwrap();
    let len = (24 + compressed.len() as u32).to_le_bytes();
    let header = [&len[..3], &[kind], &guid, &24_u16.to_le_bytes(), &1_u16.to_le_bytes()].concat();
    [vec![0xff; 0x90], header, compressed, vec![0xff; 0x100]].concat()
}

fn drivers_with(name: &[u8], at: usize) -> Vec<u8> {
    let mut drivers = vec![0x90; 200_000];
    drivers[at..at + name.len()].copy_from_slice(name);
    drivers
}

#[test]
fn firmware_that_knows_the_folder_of_named_files_takes_the_kernel_from_there() {
    // In the first chunk, across two, and at the end.
    for at in [5, (64 << 10) - 4, 200_000 - 9] {
        assert_eq!(KernelBlob::of_firmware(&firmware_with(&drivers_with(b"etc/boot/", at), 2)), KernelBlob::Named, "at {at}");
    }
    assert_eq!(KernelBlob::of_firmware(&firmware_with(&drivers_with(b"etc/boot-menu-wait", 5), 2)), KernelBlob::Patched);
}

#[test]
fn what_follows_the_driver_of_named_files_is_not_looked_at() {
    let name: Vec<u8> = "QemuKernelLoaderFsDxe".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_folder_at = |at: usize| {
        let mut drivers = drivers_with(&name, (64 << 10) - 5);
        drivers.resize(400_000, 0x90);
        drivers[at..at + 9].copy_from_slice(b"etc/boot/");
        KernelBlob::of_firmware(&firmware_with(&drivers, 2))
    };

    assert_eq!(with_folder_at(60_000), KernelBlob::Named, "in the driver");
    assert_eq!(with_folder_at(66_000), KernelBlob::Named, "the name stands before the code");
    assert_eq!(with_folder_at(300_000), KernelBlob::Patched, "in another driver");
}

#[test]
fn firmware_without_a_readable_section_is_taken_for_an_old_one() {
    let good = firmware_with(&drivers_with(b"etc/boot/", 150_000), 2);
    let flipped = |at: usize, bits: u8| {
        let mut firmware = good.clone();
        firmware[at] ^= bits;
        KernelBlob::of_firmware(&firmware)
    };

    assert_eq!(KernelBlob::of_firmware(&good), KernelBlob::Named);
    assert_eq!(KernelBlob::of_firmware(&firmware_with(&drivers_with(b"etc/boot/", 5), 1)), KernelBlob::Patched, "another type");
    assert_eq!(flipped(0x94, 1), KernelBlob::Patched, "another GUID");
    assert_eq!(flipped(0x92, 0x80), KernelBlob::Patched, "longer than the image");
    assert_eq!(flipped(0xa4, 0xf8), KernelBlob::Patched, "data behind the section");
    assert_eq!(flipped(0xa8, 0xff), KernelBlob::Patched, "no LZMA properties");
    assert_eq!(flipped(0xac, 0x7f), KernelBlob::Patched, "a dictionary of 2 GiB");
    for len in 0..good.len() {
        let _any = KernelBlob::of_firmware(&good[..len]);
    }
    assert_eq!(KernelBlob::of_firmware(&[]), KernelBlob::Patched);
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
