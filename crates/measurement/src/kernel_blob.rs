//! Which copy of the kernel a firmware takes from `fw_cfg`.
//!
//! QEMU from 10.0 on offers the kernel twice: as always with its own changes in the setup header, and as the file
//! `etc/boot/kernel` without them. OVMF from edk2-stable202502 on asks for files below `etc/boot/` first, so that it starts,
//! and measures, the unchanged one. No version is written in a firmware image; its drivers lie in one compressed section, and the
//! driver that reads those files has their folder's name in it. Sources: edk2 pull request 10628, QEMU 10.0, and boots of Debian's
//! OVMF 2025.02 and 2026.08.

#![deny(clippy::indexing_slicing)]

use std::io::Read as _;

use lzma_rust2::LzmaReader;
use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::reader;

/// `ee4e5898-3914-4259-9d6e-dc7bd79403cf`, a section compressed with LZMA, in memory order.
const LZMA_SECTION_GUID: [u8; 16] = [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
/// Type of a section that a GUID defines.
const GUID_DEFINED: u8 = 2;
const SECTION_HEADER_LEN: usize = 4;
/// Folder of the named files.
const NAMED_BLOBS: &[u8] = b"etc/boot/";
/// `QemuKernelLoaderFsDxe` in UTF-16, the name of the driver that reads those files. It stands behind the driver's code.
const DRIVER_NAME: &[u8] = b"Q\0e\0m\0u\0K\0e\0r\0n\0e\0l\0L\0o\0a\0d\0e\0r\0F\0s\0D\0x\0e\0";
/// Most that is decompressed; OVMF of today has 16 MiB.
const MAX_DECOMPRESSED: u64 = 64 << 20;
const MAX_DICTIONARY_KIB: u32 = 64 << 10;
const CHUNK: usize = 64 << 10;

/// The copy of the kernel that a firmware starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelBlob {
    /// The one with QEMU's changes in its setup header: OVMF before edk2-stable202502.
    Patched,
    /// `etc/boot/kernel`, the file as it is, where QEMU offers it (10.0 and later).
    Named,
}

impl KernelBlob {
    /// What `firmware` does. An image without a readable compressed section is taken for an old one.
    ///
    /// `firmware`: the whole image, untrusted. Decompresses at most 64 MiB, up to the driver in question.
    #[must_use]
    pub fn of_firmware(firmware: &[u8]) -> Self {
        if drivers(firmware).is_some_and(mentions_named_blobs) { Self::Named } else { Self::Patched }
    }
}

/// The first compressed section, without its headers.
fn drivers(firmware: &[u8]) -> Option<&[u8]> {
    memmem::find_iter(firmware, &LZMA_SECTION_GUID).find_map(|guid_at| section_with_guid_at(firmware, guid_at))
}

fn section_with_guid_at(firmware: &[u8], guid_at: usize) -> Option<&[u8]> {
    let at = guid_at.checked_sub(SECTION_HEADER_LEN)?;
    let [low, middle, high, kind] = reader::bytes(firmware, at)?;
    let len = usize::try_from(u32::from_le_bytes([low, middle, high, 0])).ok()?;
    let data_offset = usize::from(reader::u16(firmware, guid_at + LZMA_SECTION_GUID.len())?);
    let data_len = len.checked_sub(data_offset)?;
    if kind == GUID_DEFINED { reader::slice(firmware, at.checked_add(data_offset)?, data_len) } else { None }
}

fn mentions_named_blobs(compressed: &[u8]) -> bool {
    let Ok(decompressed) = LzmaReader::new_mem_limit(compressed, MAX_DICTIONARY_KIB, None) else { return false };
    let mut decompressed = decompressed.take(MAX_DECOMPRESSED);
    // The end of the last chunk stays in front, for a name across two.
    let overlap = DRIVER_NAME.len() - 1;
    let mut driver_ended = false;
    let mut window = Vec::with_capacity(CHUNK + overlap);
    loop {
        let kept = window.len().saturating_sub(overlap);
        window.drain(..kept);
        let read = decompressed.by_ref().take(CHUNK as u64).read_to_end(&mut window);
        if memmem::find(&window, NAMED_BLOBS).is_some() {
            return true;
        }
        // A damaged section says no more than what came before. What follows the driver says nothing; one chunk more is read, should a
        // builder put the name before the code.
        if driver_ended || !read.is_ok_and(|count| count > 0) {
            return false;
        }
        driver_ended = memmem::find(&window, DRIVER_NAME).is_some();
    }
}
