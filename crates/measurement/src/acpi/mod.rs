//! The ACPI tables that QEMU builds for our command line, and their three digests in RTMR0.
//!
//! QEMU generates the tables on the host; the firmware reads them over `fw_cfg`, measures the three files as they are, and only then
//! fills in addresses and checksums. They are a function of the machine type, the vCPUs, the memory split, the number of PCI devices on
//! the root bus (their kind makes no difference) and of the PCI windows at the time they are read. The generator here is compared byte by
//! byte with QEMU 10.0, see `tests/acpi.rs`.

mod aml;
mod cpus;
mod dsdt;
mod fixed;
mod hotplug;
mod interrupts;
mod loader;
mod resource;

use crate::{Digest384, VmShape, sha384};
use cpus::CpuScan;
use hotplug::LabelAnswer;
use loader::{Loader, RSDP_FILE, TABLES_FILE, Zone};

/// QEMU allots the tables in blocks of this length.
const TABLES_BLOCK: usize = 0x2_0000;
const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;
/// Size of the 64-bit PCI hole of a q35 machine unless it is set.
const DEFAULT_HOLE64_SIZE: u64 = 32 * GIB;
/// Devices that always exist: root and data disk, vsock, host share.
const FIXED_DEVICES: u32 = 4;
/// Slots of the root bus between the host bridge and the chipset.
const FREE_SLOTS: u32 = 30;
/// More CPUs need x2APIC entries.
const MAX_CPUS: u32 = 255;
/// Above this QEMU moves memory around the hole that AMD reserves below 1 TiB.
const MAX_MEMORY: u64 = 512 * GIB;

/// A machine whose tables are not modelled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// A property of the VM changes the tables in a way that has not been compared with QEMU.
    #[error("ACPI tables of a VM with {feature} are not modelled")]
    Unsupported {
        /// The property.
        feature: &'static str,
    },
}

/// Addresses of 64-bit PCI memory at the time the tables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PciWindow {
    /// No device has a 64-bit region yet: the window follows the memory. QEMU's answer before a firmware has run.
    Unassigned,
    /// The firmware has placed 64-bit regions from `first` to `last`. OVMF does so before it reads the tables, at an address that
    /// depends on the width of physical addresses of the vCPU.
    Assigned {
        /// Lowest address of a region.
        first: u64,
        /// Highest address of a region.
        last: u64,
    },
}

impl PciWindow {
    /// Where OVMF places 64-bit regions when physical addresses have 46 bits, as on every TDX machine these tables were compared with.
    pub const OVMF_46_BITS: Self = Self::Assigned { first: 0x3800_0000_0000, last: 0x3800_0000_0000 };
}

/// The machine around a VM shape.
///
/// Common to all: machine type q35 with `hpet=off,smm=off`, one serial port, the devices of [`VmShape`] on the root bus, power
/// management registers at 0x600 and the PCI Express configuration space at 0xe0000000, which is what OVMF programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiProfile {
    release: Release,
    trigger: InterruptTrigger,
    window: PciWindow,
}

/// A release whose tables are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    V8_2,
    V9_2,
    V10_0,
}

/// How the tables say that legacy and GSI interrupts are triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptTrigger {
    /// PCI interrupts are level triggered, as on every machine that is not confidential.
    Level,
    /// All are edge triggered: what a QEMU reports that cannot see the end of an interrupt in a TD.
    Edge,
}

impl AcpiProfile {
    /// The machine that the software TEE vouches for: tables of QEMU 10.0, whatever QEMU runs the VM, with
    /// [`PciWindow::Unassigned`]. No hardware measures them; what counts is that simulator and verifier agree.
    pub const SOFTWARE_TEE: Self = Self::qemu_10_0(PciWindow::Unassigned);

    /// A machine of QEMU 10.0 without TDX. Compared with QEMU itself.
    #[must_use]
    pub const fn qemu_10_0(window: PciWindow) -> Self {
        Self { release: Release::V10_0, trigger: InterruptTrigger::Level, window }
    }

    /// A TD of QEMU 8.2 with PCI hot-plug on. Compared with the digests that TDX machines of one, two, four and eight vCPUs have measured.
    #[must_use]
    pub const fn tdx_8_2(window: PciWindow) -> Self {
        Self { release: Release::V8_2, trigger: InterruptTrigger::Edge, window }
    }

    /// A TD of QEMU 9.2 with PCI hot-plug off. Compared with the digests that two TDX machines have measured, one for each
    /// `trigger`; which one a host reports depends on its build of QEMU.
    #[must_use]
    pub const fn tdx_9_2(trigger: InterruptTrigger, window: PciWindow) -> Self {
        Self { release: Release::V9_2, trigger, window }
    }
}

/// The three `fw_cfg` files of ACPI, as the firmware reads and measures them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// `etc/acpi/tables`: DSDT, FADT and the others, before addresses and checksums are filled in.
    pub tables: Vec<u8>,
    /// `etc/acpi/rsdp`.
    pub rsdp: Vec<u8>,
    /// `etc/table-loader`: the commands that place and link the tables.
    pub loader: Vec<u8>,
}

/// Digests of the three files: the "ACPI DATA" events of RTMR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiDigests {
    /// SHA-384 of `etc/table-loader`.
    pub loader: Digest384,
    /// SHA-384 of `etc/acpi/rsdp`.
    pub rsdp: Digest384,
    /// SHA-384 of `etc/acpi/tables`.
    pub tables: Digest384,
}

impl AcpiTables {
    /// Digests of the three files.
    #[must_use]
    pub fn digests(&self) -> AcpiDigests {
        AcpiDigests { loader: sha384(&self.loader), rsdp: sha384(&self.rsdp), tables: sha384(&self.tables) }
    }
}

/// What of a machine shows in its tables.
struct Machine {
    cpu_count: u8,
    pic: bool,
    cpu_scan: CpuScan,
    label_answer: LabelAnswer,
    trigger: InterruptTrigger,
    /// PCI hot-plug goes through ACPI.
    acpi_hotplug: bool,
    /// Devices on the root bus besides host bridge and chipset.
    pci_device_count: u8,
    /// End of the memory below 4 GiB, where the 32-bit PCI window starts.
    low_memory_end: u32,
    /// First and last address of the 64-bit PCI window.
    wide_window: Option<(u64, u64)>,
}

/// The ACPI files of a VM of `shape` under `profile`.
///
/// # Errors
/// [`AcpiError::Unsupported`]: GPUs, NVSwitches, huge pages, a TPM, more than 255 vCPUs, more than 512 GiB, more than 30 devices, or a
/// VM that the profile was not compared for.
pub fn tables(shape: &VmShape, profile: AcpiProfile) -> Result<AcpiTables, AcpiError> {
    Ok(assemble(&Machine::new(shape, profile)?))
}

impl Machine {
    fn new(shape: &VmShape, profile: AcpiProfile) -> Result<Self, AcpiError> {
        let unsupported = |feature| AcpiError::Unsupported { feature };
        let is_release = match profile.release {
            Release::V8_2 => (shape.qemu_version.major, shape.qemu_version.minor) == (8, 2),
            Release::V9_2 => (shape.qemu_version.major, shape.qemu_version.minor) == (9, 2),
            Release::V10_0 => true,
        };
        let refused = [
            (!is_release, "another QEMU than that of the profile"),
            (profile.release == Release::V8_2 && shape.hotplug_off, "PCI hot-plug off under QEMU 8.2"),
            (profile.release == Release::V9_2 && !shape.hotplug_off, "PCI hot-plug under QEMU 9.2"),
            (shape.num_gpus > 0, "GPUs"),
            (shape.num_nvswitches > 0, "NVSwitches"),
            (shape.hugepages, "huge pages"),
            (shape.swtpm, "a TPM"),
            (shape.cpu_count > MAX_CPUS, "more than 255 vCPUs"),
            (shape.memory_size > MAX_MEMORY, "more than 512 GiB of memory"),
        ];
        if let Some((_, feature)) = refused.into_iter().find(|(is_refused, _)| *is_refused) {
            return Err(unsupported(feature));
        }
        let too_many_devices = || unsupported("more than 30 devices on the root bus");
        let devices = shape.num_nics.saturating_add(shape.num_verity_volumes).saturating_add(FIXED_DEVICES);
        let devices = u8::try_from(devices).ok().filter(|count| u32::from(*count) <= FREE_SLOTS).ok_or_else(too_many_devices)?;
        Ok(Self {
            cpu_count: u8::try_from(shape.cpu_count).map_err(|_| unsupported("more than 255 vCPUs"))?,
            pic: shape.pic,
            cpu_scan: if profile.release == Release::V10_0 { CpuScan::CollectFirst } else { CpuScan::NotifyAtOnce },
            label_answer: if profile.release == Release::V10_0 { LabelAnswer::WhenSet } else { LabelAnswer::Always },
            trigger: profile.trigger,
            acpi_hotplug: !shape.hotplug_off,
            pci_device_count: devices,
            low_memory_end: u32::try_from(shape.memory_below_4g()).map_err(|_| unsupported("more than 4 GiB of low memory"))?,
            wide_window: wide_window(shape, profile.window).ok_or_else(|| unsupported("a 64-bit PCI hole of that size"))?,
        })
    }
}

/// The 64-bit window, `None` inside when it is empty. `None` outside when it does not fit.
fn wide_window(shape: &VmShape, window: PciWindow) -> Option<Option<(u64, u64)>> {
    let hole_size = if shape.pci_hole64_size == 0 { DEFAULT_HOLE64_SIZE } else { shape.pci_hole64_size };
    let (start, used_end) = match window {
        PciWindow::Unassigned => {
            let start = (FOUR_GIB + shape.memory_size - shape.memory_below_4g()).next_multiple_of(GIB);
            (start, start)
        }
        PciWindow::Assigned { first, last } => (first.max(FOUR_GIB), last.checked_add(1)?),
    };
    let hole_end = start.checked_add(hole_size)?.checked_next_multiple_of(GIB)?;
    let end = hole_end.max(used_end);
    Some((end > start).then(|| (start, end - 1)))
}

fn assemble(machine: &Machine) -> AcpiTables {
    let mut blob = fixed::facs();
    let mut place = |table: Vec<u8>| {
        // A machine that is modelled stays far below 4 GiB of tables.
        let offset = blob.len() as u32;
        let len = table.len() as u32;
        blob.extend(table);
        (offset, len)
    };
    let dsdt = place(fixed::table(*b"DSDT", 1, &dsdt::dsdt(machine)));
    let fadt = place(fixed::fadt(machine, 0, dsdt.0));
    let others = [place(fixed::madt(machine)), place(fixed::mcfg()), place(fixed::waet())];
    let listed = [fadt, others[0], others[1], others[2]];
    let rsdt = place(fixed::rsdt(&listed.map(|(offset, _)| offset)));
    let padded = blob.len().next_multiple_of(TABLES_BLOCK);
    blob.resize(padded, 0);

    let mut loader = Loader::default();
    loader.allocate(RSDP_FILE, 16, Zone::FSegment);
    loader.allocate(TABLES_FILE, 64, Zone::High);
    loader.checksum_table(dsdt.0, dsdt.1);
    for (field, len) in [(36, 4), (40, 4), (140, 8)] {
        loader.add_pointer(TABLES_FILE, fadt.0 + field, len);
    }
    for (offset, len) in listed {
        loader.checksum_table(offset, len);
    }
    for index in 0..4 {
        loader.add_pointer(TABLES_FILE, rsdt.0 + fixed::HEADER_LEN as u32 + 4 * index, 4);
    }
    loader.checksum_table(rsdt.0, rsdt.1);
    loader.add_pointer(RSDP_FILE, 16, 4);
    loader.checksum(RSDP_FILE, 8, 0, 20);

    let rsdp = [b"RSD PTR \0BOCHS \0".as_slice(), &rsdt.0.to_le_bytes()].concat();
    AcpiTables { tables: blob, rsdp, loader: loader.finish() }
}
