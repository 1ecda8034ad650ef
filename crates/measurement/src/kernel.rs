//! The kernel image as the firmware receives it from QEMU.
//!
//! QEMU loads `-kernel` through the Linux boot protocol and writes load addresses into the setup header before it offers
//! the image to the firmware, so the measured bytes differ from the file. From QEMU 10.2 on a confidential guest gets the
//! file unchanged; from 10.0 on a firmware that asks for it does ([`KernelBlob`]). Source: Linux
//! `Documentation/arch/x86/boot.rst` and QEMU `hw/i386/x86-common.c`.

#![deny(clippy::indexing_slicing)]

use crate::authenticode::{self, PeError};
use crate::kernel_blob::KernelBlob;
use crate::shape::memory_below_4g;
use crate::{Digest384, VmShape, reader};

/// Largest kernel or initrd that is looked at.
pub const MAX_FILE_LEN: usize = 1 << 30;

/// What is copied to be patched: the setup header and, in every kernel, all PE headers.
const PATCHED_HEAD_LEN: usize = 64 << 10;
const REAL_MODE_ADDRESS: u32 = 0x1_0000;
const COMMAND_LINE_ADDRESS: u32 = 0x2_0000;
/// Low memory that QEMU keeps for ACPI data and its own use.
const ACPI_DATA_LEN: u64 = 0x2_8000;
const LOADER_TYPE_QEMU: u8 = 0xb0;
const LOADFLAGS_LOADED_HIGH: u8 = 0x01;
const LOADFLAGS_CAN_USE_HEAP: u8 = 0x80;
const XLOADFLAGS_CAN_BE_LOADED_ABOVE_4G: u16 = 0x02;
const XLOADFLAGS_5LEVEL_ENABLED: u16 = 0x40;

/// Why a kernel has no measurement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Not a bzImage.
    #[error("kernel image has no Linux setup header")]
    NoSetupHeader,
    /// A boot protocol before 2.03 or a kernel that loads low.
    #[error("kernel with boot protocol {protocol:#06x} is not supported, it must be at least 2.03 and load high")]
    UnsupportedProtocol {
        /// Version field of the header.
        protocol: u16,
    },
    /// QEMU would write the video mode into the header.
    #[error("command line sets vga=, which QEMU writes into the kernel")]
    UnsupportedVideoMode,
    /// The initrd does not fit below its limit.
    #[error("initrd of {initrd_len} bytes does not fit below {limit:#x}")]
    InitrdTooLarge {
        /// Its length.
        initrd_len: u64,
        /// Highest address it may occupy.
        limit: u64,
    },
    /// The file is larger than [`MAX_FILE_LEN`].
    #[error("kernel of {len} bytes is larger than {MAX_FILE_LEN}")]
    TooLarge {
        /// Length of the file.
        len: usize,
    },
    /// The image is not an EFI application.
    #[error("kernel is not a PE image")]
    Pe(#[from] PeError),
}

/// What of a VM decides over the addresses that QEMU writes into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelPlacement {
    /// Memory of the VM in bytes.
    pub memory_size: u64,
    /// Who writes into the header, if anybody.
    pub header: SetupHeader,
}

/// Which setup header the firmware sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetupHeader {
    /// The file's own: QEMU from 10.2 on, or from 10.0 on with a firmware that asks for the file.
    Unchanged,
    /// As QEMU writes it.
    Qemu,
    /// As the measurement document defines it. Equal to [`Self::Qemu`] for a kernel with five-level paging (x86-64 Linux), else the
    /// initrd lies lower than QEMU puts it.
    Document,
}

impl KernelPlacement {
    /// What the firmware of a confidential guest of `shape` gets, if it takes the copy `blob`.
    ///
    /// | QEMU | [`KernelBlob::Patched`] | [`KernelBlob::Named`] |
    /// |---|---|---|
    /// | before 10.0 | patched | patched, there is no other |
    /// | 10.0, 10.1 | patched | unchanged |
    /// | 10.2 and later | unchanged | unchanged |
    #[must_use]
    pub fn new(shape: &VmShape, blob: KernelBlob) -> Self {
        let version = shape.qemu_version;
        let is_named = blob == KernelBlob::Named && version.offers_named_kernel();
        let header = if version.patches_kernel_header() && !is_named { SetupHeader::Qemu } else { SetupHeader::Unchanged };
        Self { memory_size: shape.memory_size, header }
    }
}

/// Authenticode SHA-384 of `kernel` as the firmware gets it: the first digest of RTMR1.
///
/// `kernel`: the bzImage file, untrusted. `initrd_len`: bytes of the initrd. `cmdline`: the command line given to QEMU.
///
/// # Errors
/// [`KernelError`].
pub fn measure(kernel: &[u8], initrd_len: usize, cmdline: &str, placement: KernelPlacement) -> Result<Digest384, KernelError> {
    if kernel.len() > MAX_FILE_LEN {
        return Err(KernelError::TooLarge { len: kernel.len() });
    }
    if placement.header == SetupHeader::Unchanged {
        return Ok(authenticode::sha384(kernel)?);
    }
    if cmdline.contains("vga=") {
        return Err(KernelError::UnsupportedVideoMode);
    }
    let mut head = kernel.get(..PATCHED_HEAD_LEN).unwrap_or(kernel).to_vec();
    patch(&mut head, initrd_len, placement)?;
    Ok(authenticode::sha384_with_head(&head, kernel)?)
}

/// Highest initrd address that the kernel allows.
fn kernel_limit(image: &[u8], protocol: u16, rule: SetupHeader) -> Option<u64> {
    let flags = if protocol >= 0x20c { reader::u16(image, 0x236)? } else { 0 };
    Some(match rule {
        SetupHeader::Document if protocol >= 0x20c && flags & XLOADFLAGS_5LEVEL_ENABLED == 0 => 0x37ff_ffff,
        SetupHeader::Document if protocol >= 0x20c => u64::from(u32::MAX),
        _ if flags & XLOADFLAGS_CAN_BE_LOADED_ABOVE_4G != 0 => u64::from(u32::MAX),
        _ => u64::from(reader::u32(image, 0x22c)?),
    })
}

/// Writes into `image` what the loader writes.
fn patch(image: &mut [u8], initrd_len: usize, placement: KernelPlacement) -> Result<(), KernelError> {
    if reader::bytes(image, 0x202) != Some(*b"HdrS") {
        return Err(KernelError::NoSetupHeader);
    }
    let protocol = reader::u16(image, 0x206).ok_or(KernelError::NoSetupHeader)?;
    let [load_flags] = reader::bytes(image, 0x211).ok_or(KernelError::NoSetupHeader)?;
    if protocol < 0x203 || load_flags & LOADFLAGS_LOADED_HIGH == 0 {
        return Err(KernelError::UnsupportedProtocol { protocol });
    }
    let kernel_limit = kernel_limit(image, protocol, placement.header).ok_or(KernelError::NoSetupHeader)?;
    let memory_limit = memory_below_4g(placement.memory_size).saturating_sub(ACPI_DATA_LEN + 1);
    let limit = kernel_limit.min(memory_limit);
    let too_large = |initrd_len| KernelError::InitrdTooLarge { initrd_len, limit };
    let initrd_size = u32::try_from(initrd_len).map_err(|_| too_large(u64::MAX))?;
    let initrd_at = limit.checked_sub(u64::from(initrd_size)).ok_or_else(|| too_large(u64::from(initrd_size)))? & !0xfff;
    let initrd_at = u32::try_from(initrd_at).map_err(|_| too_large(u64::from(initrd_size)))?;

    let heap_end = COMMAND_LINE_ADDRESS - REAL_MODE_ADDRESS - 0x200;
    let [heap_low, heap_high, ..] = heap_end.to_le_bytes();
    let mut put = |at: usize, bytes: &[u8]| -> Result<(), KernelError> {
        image.get_mut(at..at + bytes.len()).ok_or(KernelError::NoSetupHeader)?.copy_from_slice(bytes);
        Ok(())
    };
    put(0x210, &[LOADER_TYPE_QEMU, load_flags | LOADFLAGS_CAN_USE_HEAP])?;
    put(0x224, &[heap_low, heap_high])?;
    put(0x228, &COMMAND_LINE_ADDRESS.to_le_bytes())?;
    put(0x218, &initrd_at.to_le_bytes())?;
    put(0x21c, &initrd_size.to_le_bytes())
}
