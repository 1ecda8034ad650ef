//! Intel TDX: the image document and the registers a launch must produce.

mod document;
mod expected;

pub use document::{DocumentError, ImageMeasurement, OvmfVariant, UnknownOvmfVariant, UnpatchedKernel, check_document, identify_ovmf};
pub use expected::{ExpectedLaunch, HostTables, LaunchError, TdxRegisters, expected, expected_from_files, expected_from_parts};

use crate::Digest384;
use crate::kernel::KernelError;
use crate::kernel_blob::KernelBlob;
use crate::td_hob::TdHobError;
use crate::tdvf::TdvfError;

/// The files of an OS image that are measured at launch.
#[derive(Debug, Clone, Copy)]
pub struct ImageFiles<'a> {
    /// Firmware image (`ovmf.fd`).
    pub firmware: &'a [u8],
    /// Kernel (`bzImage`).
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: &'a [u8],
    /// Kernel command line, as given to QEMU.
    pub cmdline: &'a str,
}

/// What is measured of an initrd, and its length, which decides where QEMU puts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitrdDigest {
    /// SHA-384 of the file.
    pub sha384: Digest384,
    /// Its length in bytes.
    pub len: usize,
}

/// The files of an OS image with the initrd already hashed, so that it need not be in memory.
#[derive(Debug, Clone, Copy)]
pub struct ImageParts<'a> {
    /// Firmware image (`ovmf.fd`).
    pub firmware: &'a [u8],
    /// Kernel (`bzImage`).
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: InitrdDigest,
    /// Kernel command line, as given to QEMU.
    pub cmdline: &'a str,
    /// Which events the firmware logs; the image's metadata say so, the bytes do not.
    pub ovmf: OvmfVariant,
    /// Which copy of the kernel the firmware takes, as the image's document says; `None` looks into the firmware, where that decides.
    pub blob: Option<KernelBlob>,
}

/// Why the files of an image cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The firmware cannot start a TD.
    #[error("firmware of the image")]
    Firmware(#[from] TdvfError),
    /// The firmware's memory map is not usable.
    #[error("memory map of the firmware")]
    MemoryMap(#[from] TdHobError),
    /// The kernel cannot be measured.
    #[error("kernel of the image")]
    Kernel(#[from] KernelError),
    /// The variable store is not the stock one, so the events of this firmware are not known.
    #[error("variable store of the firmware has SHA-384 {digest}, no known OVMF has that")]
    UnknownVariableStore {
        /// Digest of the configuration firmware volume, hex.
        digest: String,
    },
    /// The document would hold another digest than this kernel gets.
    #[error("kernel without five-level paging gets its initrd at an address that the document does not express")]
    UnsupportedKernel,
    /// The initrd is larger than [`crate::kernel::MAX_FILE_LEN`].
    #[error("initrd of {len} bytes is too large")]
    InitrdTooLarge {
        /// Its length.
        len: usize,
    },
}
