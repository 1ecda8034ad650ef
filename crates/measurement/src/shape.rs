//! The shape of a VM: what of its configuration changes the launch measurement.

use std::fmt;
use std::str::FromStr;

use dstack_manifest::VmConfig;

/// QEMU that is assumed when a configuration does not name one.
const DEFAULT_QEMU: QemuVersion = QemuVersion { major: 9, minor: 1, patch: 0 };
const MIB: u64 = 1 << 20;
/// Least memory a firmware can start in, and most that a q35 machine is measured with here.
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 64 * MIB..=(64 << 40);

/// Why a configuration is not a VM that can be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The version is not `major.minor[.patch]`.
    #[error("QEMU version {0:?} is not major.minor.patch")]
    QemuVersion(String),
    /// QEMU before 8 has no TDX.
    #[error("QEMU {0} is too old, TDX needs 8.0")]
    QemuTooOld(QemuVersion),
    /// No vCPU, or more than 4096.
    #[error("a VM of {0} vCPUs cannot be measured")]
    CpuCount(u32),
    /// Memory is not a number of MiB between 64 MiB and 64 TiB.
    #[error("memory of {0} bytes is not a number of MiB between 64 MiB and 64 TiB")]
    Memory(u64),
    /// Another way to attach the host share.
    #[error("host share mode {0:?} is none of 9p, vvfat and vhd")]
    HostShare(String),
}

/// A release of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QemuVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl QemuVersion {
    /// The release `major.minor.patch`.
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// From 10.0 on QEMU offers the kernel as it is as well, as the file `etc/boot/kernel`.
    #[must_use]
    pub fn offers_named_kernel(self) -> bool {
        self >= Self::new(10, 0, 0)
    }

    /// From 10.2 on QEMU hands the kernel of a confidential guest over unchanged.
    #[must_use]
    pub fn patches_kernel_header(self) -> bool {
        self < Self::new(10, 2, 0)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for QemuVersion {
    type Err = ShapeError;

    /// Reads `10.0.2`, or `10.0` as `10.0.0`. A suffix such as `-rc1` is refused.
    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let bad = || ShapeError::QemuVersion(text.chars().take(64).collect());
        let number = |part: &str| match part.as_bytes() {
            [b'0'..=b'9', ..] => part.parse::<u16>().map_err(|_| bad()),
            _ => Err(bad()),
        };
        let mut parts = text.split('.');
        let (major, minor) = (parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
        let patch = parts.next().unwrap_or("0");
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { major: number(major)?, minor: number(minor)?, patch: number(patch)? })
    }
}

/// In which order a VMM adds and measures the pages of a firmware section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageAddOrder {
    /// Add a page, measure it, go on to the next (QEMU 9 and later).
    SinglePass,
    /// Add all pages of a section, then measure all of them (QEMU 8).
    TwoPass,
}

/// How the host share is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostShareMode {
    /// A 9p file system device.
    NineP,
    /// A FAT file system that QEMU makes up from a directory, on a virtio disk.
    Vvfat,
    /// A FAT image on a virtio disk.
    Vhd,
}

/// How the root disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootDisk {
    /// A virtio disk.
    Virtio,
    /// A CD-ROM at the chipset's own controller, as images before 0.5.0 were. Takes no slot of the PCI bus.
    Cdrom,
}

/// What of a VM's configuration changes the launch measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmShape {
    /// vCPUs.
    pub cpu_count: u32,
    /// Memory in bytes.
    pub memory_size: u64,
    /// QEMU that starts the VM.
    pub qemu_version: QemuVersion,
    /// The 8259 interrupt controller is present.
    pub pic: bool,
    /// Order in which firmware pages are measured.
    pub page_add_order: PageAddOrder,
    /// Size of the 64-bit PCI hole in bytes; 0 leaves QEMU's default.
    pub pci_hole64_size: u64,
    /// Memory comes from huge pages (adds a NUMA node).
    pub hugepages: bool,
    /// GPUs passed through.
    pub num_gpus: u32,
    /// NVSwitches passed through.
    pub num_nvswitches: u32,
    /// Network cards.
    pub num_nics: u32,
    /// Read-only data volumes.
    pub num_verity_volumes: u32,
    /// PCI hot-plug behind bridges is off.
    pub hotplug_off: bool,
    /// How the host share is attached.
    pub host_share: HostShareMode,
    /// How the root disk is attached; a configuration does not say, so it is a virtio disk unless set here.
    pub root_disk: RootDisk,
    /// A software TPM is attached.
    pub swtpm: bool,
}

impl VmShape {
    /// A VM of `cpu_count` vCPUs and `memory_size` bytes on `qemu_version`, with one network card, a FAT host share and nothing else.
    ///
    /// # Errors
    /// [`ShapeError`]: numbers outside the modelled range.
    pub fn new(cpu_count: u32, memory_size: u64, qemu_version: QemuVersion) -> Result<Self, ShapeError> {
        if qemu_version.major < 8 {
            return Err(ShapeError::QemuTooOld(qemu_version));
        }
        if cpu_count == 0 || cpu_count > 4096 {
            return Err(ShapeError::CpuCount(cpu_count));
        }
        if !memory_size.is_multiple_of(MIB) || !MEMORY_RANGE.contains(&memory_size) {
            return Err(ShapeError::Memory(memory_size));
        }
        let is_qemu_8 = qemu_version.major == 8;
        Ok(Self {
            cpu_count,
            memory_size,
            qemu_version,
            pic: is_qemu_8,
            page_add_order: if is_qemu_8 { PageAddOrder::TwoPass } else { PageAddOrder::SinglePass },
            pci_hole64_size: 0,
            hugepages: false,
            num_gpus: 0,
            num_nvswitches: 0,
            num_nics: 1,
            num_verity_volumes: 0,
            hotplug_off: false,
            host_share: HostShareMode::Vhd,
            root_disk: RootDisk::Virtio,
            swtpm: false,
        })
    }

    /// Memory below 4 GiB: all of it when it fits below QEMU's limit for q35, else 2 GiB.
    #[must_use]
    pub fn memory_below_4g(&self) -> u64 {
        memory_below_4g(self.memory_size)
    }
}

/// Source: QEMU `hw/i386/pc_q35.c`, the split without `max-ram-below-4g`.
pub(crate) fn memory_below_4g(memory_size: u64) -> u64 {
    if memory_size >= 0xb000_0000 { 0x8000_0000 } else { memory_size }
}

impl TryFrom<&VmConfig> for VmShape {
    type Error = ShapeError;

    /// Reads the wire document. An absent QEMU version means 9.1.0, an absent share mode 9p; `pic` and page order
    /// follow the version unless they are given.
    fn try_from(config: &VmConfig) -> Result<Self, ShapeError> {
        let qemu_version = match config.qemu_version.as_deref() {
            None | Some("") => DEFAULT_QEMU,
            Some(text) => text.parse()?,
        };
        let mut shape = Self::new(config.cpu_count, config.memory_size, qemu_version)?;
        if let Some(pic) = config.pic {
            shape.pic = pic;
        }
        if let Some(two_pass) = config.two_pass_add_pages {
            shape.page_add_order = if two_pass { PageAddOrder::TwoPass } else { PageAddOrder::SinglePass };
        }
        shape.pci_hole64_size = config.pci_hole64_size;
        shape.hugepages = config.hugepages;
        shape.num_gpus = config.num_gpus;
        shape.num_nvswitches = config.num_nvswitches;
        shape.num_nics = config.num_nics;
        shape.num_verity_volumes = config.num_verity_volumes;
        shape.hotplug_off = config.hotplug_off;
        shape.swtpm = config.swtpm;
        shape.host_share = match config.host_share_mode.as_str() {
            "" | "9p" => HostShareMode::NineP,
            "vvfat" => HostShareMode::Vvfat,
            "vhd" => HostShareMode::Vhd,
            other => return Err(ShapeError::HostShare(other.chars().take(64).collect())),
        };
        Ok(shape)
    }
}
