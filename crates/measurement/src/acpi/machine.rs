//! What of a VM shows in its tables, and which slot each PCI device gets.

use super::AcpiError;
use super::cpus::CpuScan;
use super::extra_root::RoutingForm;
use super::hotplug::LabelAnswer;
use super::profile::{AcpiProfile, InterruptTrigger, PciWindow, Release, SerialInterrupt};
use crate::{RootDisk, VmShape};

const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;
/// Size of the 64-bit PCI hole of a q35 machine unless it is set.
const DEFAULT_HOLE64_SIZE: u64 = 32 * GIB;
/// Devices that always exist besides the root disk: data disk, vsock, host share.
const FIXED_DEVICES: u32 = 3;
/// Last slot of the root bus before the chipset.
const LAST_SLOT: u32 = 30;
/// Slot of the host bridge for GPUs on huge pages.
const EXTRA_ROOT_SLOT: u32 = 10;
/// More CPUs need x2APIC entries.
const MAX_CPUS: u32 = 255;
/// Compared up to this size; the emulated vCPU of the oracle has 40 address bits.
const MAX_MEMORY: u64 = 960 * GIB;

/// A function of the root bus besides host bridge and chipset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RootDevice {
    /// A device, or a bridge without children in the tables.
    Endpoint {
        /// Its slot.
        slot: u8,
    },
    /// A PCI Express port with one device behind it.
    Port {
        /// Its slot.
        slot: u8,
        /// Number by which the hot-plug registers select its bus.
        bus_selector: u8,
    },
}

impl RootDevice {
    pub(super) fn slot(self) -> u8 {
        match self {
            Self::Endpoint { slot } | Self::Port { slot, .. } => slot,
        }
    }
}

/// What of a machine shows in its tables.
pub(super) struct Machine {
    pub(super) cpu_count: u8,
    /// The tables have the 8259.
    pub(super) pic: bool,
    pub(super) cpu_scan: CpuScan,
    pub(super) resets_cpu_selector: bool,
    pub(super) label_answer: LabelAnswer,
    pub(super) serial_interrupt: SerialInterrupt,
    pub(super) trigger: InterruptTrigger,
    /// PCI hot-plug goes through ACPI.
    pub(super) acpi_hotplug: bool,
    /// By slot.
    pub(super) root_devices: Vec<RootDevice>,
    /// A second host bridge that belongs to NUMA node 0.
    pub(super) extra_root: Option<RoutingForm>,
    /// CPUs and memory are assigned to NUMA node 0.
    pub(super) has_numa_node: bool,
    pub(super) memory_size: u64,
    /// End of the memory below 4 GiB, where the 32-bit PCI window starts.
    pub(super) low_memory_end: u32,
    /// First and last address of the 64-bit PCI window.
    pub(super) wide_window: Option<(u64, u64)>,
}

fn unsupported(feature: &'static str) -> AcpiError {
    AcpiError::Unsupported { feature }
}

impl Machine {
    pub(super) fn new(shape: &VmShape, profile: AcpiProfile) -> Result<Self, AcpiError> {
        let AcpiProfile { release, trigger, window } = profile;
        let has_extra_root = shape.hugepages && shape.num_gpus > 0;
        let refused = [
            (!covers(release, shape), "another QEMU than that of the profile"),
            (release == Release::V9_2 && !shape.hotplug_off, "PCI hot-plug under QEMU 9.2"),
            (release == Release::V9_2 && has_extra_root, "GPUs on huge pages under QEMU 9.2"),
            (
                has_extra_root && window != PciWindow::Unassigned,
                "GPUs on huge pages, whose tables name the addresses that the firmware gave to the GPUs",
            ),
            (shape.swtpm, "a TPM"),
            (shape.cpu_count > MAX_CPUS, "more than 255 vCPUs"),
            (shape.memory_size > MAX_MEMORY, "more than 960 GiB of memory"),
        ];
        if let Some((_, feature)) = refused.into_iter().find(|(is_refused, _)| *is_refused) {
            return Err(unsupported(feature));
        }
        Ok(Self {
            cpu_count: u8::try_from(shape.cpu_count).map_err(|_| unsupported("more than 255 vCPUs"))?,
            pic: shape.pic || release.always_has_pic(),
            cpu_scan: release.cpu_scan(),
            resets_cpu_selector: release.resets_cpu_selector(),
            label_answer: release.label_answer(),
            serial_interrupt: release.serial_interrupt(),
            trigger,
            acpi_hotplug: !shape.hotplug_off,
            root_devices: root_devices(shape, has_extra_root).ok_or_else(|| unsupported("more devices than the root bus has slots"))?,
            extra_root: release.extra_root_routing().filter(|_| has_extra_root),
            has_numa_node: shape.hugepages,
            memory_size: shape.memory_size,
            low_memory_end: u32::try_from(shape.memory_below_4g()).map_err(|_| unsupported("more than 4 GiB of low memory"))?,
            wide_window: wide_window(shape, window).ok_or_else(|| unsupported("a 64-bit PCI hole of that size"))?,
        })
    }
}

/// The software TEE takes the tables of 10.0 for every QEMU.
fn covers(release: Release, shape: &VmShape) -> bool {
    let (covered, version) = (release.version(), shape.qemu_version);
    release == Release::V10_0 || (version.major, version.minor) == (covered.major, covered.minor)
}

/// The devices in the order of the command line, each in the lowest free slot. `None` if they do not fit.
///
/// Which kind of device sits in a slot does not show, only ports do: behind each is a GPU or an NVSwitch.
fn root_devices(shape: &VmShape, has_extra_root: bool) -> Option<Vec<RootDevice>> {
    let root_disk = u32::from(shape.root_disk == RootDisk::Virtio);
    let endpoints = shape.num_nics.checked_add(shape.num_verity_volumes)?.checked_add(FIXED_DEVICES + root_disk)?;
    // The command line gives the extra host bridge its slot, so nothing before it may have taken it.
    if endpoints > LAST_SLOT || (has_extra_root && endpoints >= EXTRA_ROOT_SLOT) {
        return None;
    }
    let gpu_ports = if has_extra_root { 0 } else { shape.num_gpus };
    let ports = gpu_ports.checked_add(shape.num_nvswitches)?;
    let extra_root = has_extra_root.then_some(EXTRA_ROOT_SLOT);
    let mut free = (endpoints + 1..=LAST_SLOT).filter(|slot| Some(*slot) != extra_root);
    let port_slots: Vec<u32> = free.by_ref().take(usize::try_from(ports).ok()?).collect();
    if port_slots.len() != usize::try_from(ports).ok()? {
        return None;
    }
    let mut devices: Vec<RootDevice> =
        (1..=endpoints).chain(extra_root).filter_map(|slot| Some(RootDevice::Endpoint { slot: u8::try_from(slot).ok()? })).collect();
    // The last bus gets the first number.
    for (bus_selector, slot) in port_slots.iter().rev().enumerate() {
        devices.push(RootDevice::Port { slot: u8::try_from(*slot).ok()?, bus_selector: u8::try_from(bus_selector).ok()? });
    }
    devices.sort_by_key(|device| device.slot());
    Some(devices)
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
