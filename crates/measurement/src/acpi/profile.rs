//! Which tables a machine has: the release of QEMU, how it triggers interrupts, and where PCI memory lies when they are read.

use super::AcpiError;
use super::cpus::CpuScan;
use super::extra_root::RoutingForm;
use super::hotplug::LabelAnswer;
use crate::QemuVersion;

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

/// How the tables say that legacy and GSI interrupts are triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptTrigger {
    /// PCI interrupts are level triggered, as on every machine that is not confidential.
    Level,
    /// All are edge triggered: what a QEMU reports that cannot see the end of an interrupt in a TD.
    Edge,
}

/// A release whose tables are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    V8_2,
    /// As Ubuntu 24.04 builds it.
    V8_2Ubuntu,
    V9_2,
    V10_0,
    /// As its first release candidate.
    V11_0,
    V11_1,
}

/// Interrupt line of the serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SerialInterrupt {
    /// Exclusive, edge triggered: the short descriptor.
    Plain,
    /// Shared, level triggered, active low (QEMU 11.1).
    Shared,
}

impl Release {
    pub(super) const ALL: [Self; 6] = [Self::V8_2, Self::V8_2Ubuntu, Self::V9_2, Self::V10_0, Self::V11_0, Self::V11_1];

    pub(super) fn cpu_scan(self) -> CpuScan {
        match self {
            Self::V8_2 | Self::V8_2Ubuntu | Self::V9_2 => CpuScan::NotifyAtOnce,
            Self::V10_0 | Self::V11_0 | Self::V11_1 => CpuScan::CollectFirst,
        }
    }

    pub(super) fn label_answer(self) -> LabelAnswer {
        match self {
            Self::V8_2 | Self::V9_2 => LabelAnswer::Always,
            Self::V8_2Ubuntu | Self::V10_0 | Self::V11_0 | Self::V11_1 => LabelAnswer::WhenSet,
        }
    }

    /// The tables have the 8259 even if it is off.
    pub(super) fn always_has_pic(self) -> bool {
        matches!(self, Self::V8_2 | Self::V8_2Ubuntu)
    }

    /// The CPU selector is set to zero when the operating system starts.
    pub(super) fn resets_cpu_selector(self) -> bool {
        !matches!(self, Self::V11_0 | Self::V11_1)
    }

    pub(super) fn serial_interrupt(self) -> SerialInterrupt {
        if self == Self::V11_1 { SerialInterrupt::Shared } else { SerialInterrupt::Plain }
    }

    /// A version of QEMU with these tables.
    pub(super) fn version(self) -> QemuVersion {
        let (major, minor) = match self {
            Self::V8_2 | Self::V8_2Ubuntu => (8, 2),
            Self::V9_2 => (9, 2),
            Self::V10_0 => (10, 0),
            Self::V11_0 => (11, 0),
            Self::V11_1 => (11, 1),
        };
        QemuVersion::new(major, minor, 0)
    }

    /// How a host bridge for a NUMA node states its routing; `None` when that was not compared.
    pub(super) fn extra_root_routing(self) -> Option<RoutingForm> {
        match self {
            Self::V8_2 | Self::V8_2Ubuntu => Some(RoutingForm::Computed),
            Self::V9_2 => None,
            Self::V10_0 | Self::V11_0 | Self::V11_1 => Some(RoutingForm::Listed),
        }
    }
}

/// The machine around a VM shape.
///
/// Common to all: machine type q35 with `hpet=off,smm=off`, one serial port, the devices of [`crate::VmShape`] on the root bus, power
/// management registers at 0x600 and the PCI Express configuration space at 0xe0000000, which is what OVMF programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiProfile {
    pub(super) release: Release,
    pub(super) trigger: InterruptTrigger,
    pub(super) window: PciWindow,
}

impl AcpiProfile {
    /// The machine that the software TEE vouches for: tables of QEMU 10.0, whatever QEMU runs the VM, with
    /// [`PciWindow::Unassigned`]. No hardware measures them; what counts is that simulator and verifier agree.
    pub const SOFTWARE_TEE: Self = Self::qemu_10_0(PciWindow::Unassigned);

    /// The machine of QEMU `version`.
    ///
    /// # Errors
    /// [`AcpiError::UnknownRelease`]: neither a QEMU of that release nor a machine that runs it was at hand to compare with.
    pub fn of(version: QemuVersion, trigger: InterruptTrigger, window: PciWindow) -> Result<Self, AcpiError> {
        let release = match (version.major, version.minor) {
            (8, 2) => Release::V8_2,
            (9, 2) => Release::V9_2,
            (10, 0) => Release::V10_0,
            (11, 0) => Release::V11_0,
            (11, 1) => Release::V11_1,
            _ => return Err(AcpiError::UnknownRelease(version)),
        };
        Ok(Self { release, trigger, window })
    }

    /// A machine of QEMU 8.2 without TDX, as Ubuntu 24.04 builds it. Compared with that QEMU itself.
    #[must_use]
    pub const fn ubuntu_8_2(window: PciWindow) -> Self {
        Self { release: Release::V8_2Ubuntu, trigger: InterruptTrigger::Level, window }
    }

    /// A machine of QEMU 10.0 without TDX. Compared with QEMU itself.
    #[must_use]
    pub const fn qemu_10_0(window: PciWindow) -> Self {
        Self { release: Release::V10_0, trigger: InterruptTrigger::Level, window }
    }

    /// A machine of QEMU 11.0 without TDX. Compared with its first release candidate.
    #[must_use]
    pub const fn qemu_11_0(window: PciWindow) -> Self {
        Self { release: Release::V11_0, trigger: InterruptTrigger::Level, window }
    }

    /// A machine of QEMU 11.1 without TDX. Compared with QEMU itself.
    #[must_use]
    pub const fn qemu_11_1(window: PciWindow) -> Self {
        Self { release: Release::V11_1, trigger: InterruptTrigger::Level, window }
    }

    /// A TD of QEMU 8.2. Compared with the digests that TDX machines of one, two, four and eight vCPUs have measured.
    #[must_use]
    pub const fn tdx_8_2(window: PciWindow) -> Self {
        Self { release: Release::V8_2, trigger: InterruptTrigger::Edge, window }
    }

    /// A TD of QEMU 9.2 with PCI hot-plug off. Compared with the digests that three TDX machines have measured; which `trigger` a host
    /// reports depends on its build of QEMU.
    #[must_use]
    pub const fn tdx_9_2(trigger: InterruptTrigger, window: PciWindow) -> Self {
        Self { release: Release::V9_2, trigger, window }
    }
}
