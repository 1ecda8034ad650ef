//! From options and the evidence's own configuration to the shape of a VM and the tables around it.

use dstack_manifest::VmConfig;
use dstack_measurement::{
    Digest384, HostShareMode, PageAddOrder, QemuVersion, RootDisk, VmShape,
    acpi::{self, AcpiDigests, AcpiError, AcpiProfile, InterruptTrigger, PciWindow},
    tdx::OvmfVariant,
};

use super::args::{Host, Interrupts, MachineArgs, PageOrder, Share, Switch, TableArgs};
use crate::{
    failure::{Failure, Outcome},
    size::{BareUnit, parse_size},
};

const DEFAULT_QEMU: QemuVersion = QemuVersion::new(10, 0, 0);
const DEFAULT_MEMORY: u64 = 2 << 30;

/// Whose tables, in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) host: Host,
    pub(super) trigger: InterruptTrigger,
    pub(super) window: PciWindow,
}

impl Tables {
    pub(super) fn digests(self, shape: &VmShape) -> Result<AcpiDigests, AcpiError> {
        let profile = match self.host {
            Host::SoftwareTee => AcpiProfile::SOFTWARE_TEE,
            Host::Hardware => AcpiProfile::of(shape.qemu_version, self.trigger, self.window)?,
        };
        Ok(acpi::tables(shape, profile)?.digests())
    }

    /// In words, for people.
    pub(super) fn describe(self, shape: &VmShape) -> String {
        let trigger = match self.trigger {
            InterruptTrigger::Level => "level",
            InterruptTrigger::Edge => "edge",
        };
        match (self.host, self.window) {
            (Host::SoftwareTee, _) => "the software TEE's machine model, for development only".to_owned(),
            (Host::Hardware, PciWindow::Assigned { first, .. }) => {
                format!("of QEMU {}, {trigger} triggered, PCI memory at {first:#x}", shape.qemu_version)
            }
            (Host::Hardware, PciWindow::Unassigned) => format!("of QEMU {}, {trigger} triggered", shape.qemu_version),
        }
    }
}

fn refuse(error: &dyn std::error::Error) -> Failure {
    Failure::usage("measure/shape", error.to_string(), "choose another shape; see `dstack measure --help`")
}

/// The VM that options and `config` describe; options win.
pub(super) fn shape(args: &MachineArgs, config: Option<&VmConfig>) -> Outcome<VmShape> {
    let qemu = match &args.qemu {
        Some(text) => Some(text.parse().map_err(|error| refuse(&error))?),
        None => None,
    };
    let memory = args.memory.as_deref().map(|text| parse_size("--memory", text, BareUnit::Mebibytes)).transpose()?;
    let mut shape = match config {
        Some(config) => {
            let mut config = config.clone();
            config.cpu_count = args.vcpus.unwrap_or(config.cpu_count);
            config.memory_size = memory.unwrap_or(config.memory_size);
            config.qemu_version = qemu.map(|version: QemuVersion| version.to_string()).or(config.qemu_version);
            VmShape::try_from(&config)
        }
        None => VmShape::new(args.vcpus.unwrap_or(2), memory.unwrap_or(DEFAULT_MEMORY), qemu.unwrap_or(DEFAULT_QEMU)),
    }
    .map_err(|error| refuse(&error))?;
    let set = |value: &mut u32, option: Option<u32>| *value = option.unwrap_or(*value);
    set(&mut shape.num_nics, args.nics);
    set(&mut shape.num_verity_volumes, args.volumes);
    set(&mut shape.num_gpus, args.gpus);
    set(&mut shape.num_nvswitches, args.nvswitches);
    shape.hugepages |= args.hugepages;
    shape.hotplug_off |= args.hotplug_off;
    if let Some(pic) = args.pic {
        shape.pic = pic == Switch::On;
    }
    if let Some(order) = args.page_order {
        shape.page_add_order = match order {
            PageOrder::SinglePass => PageAddOrder::SinglePass,
            PageOrder::TwoPass => PageAddOrder::TwoPass,
        };
    }
    if let Some(size) = &args.pci_hole64_size {
        shape.pci_hole64_size = parse_size("--pci-hole64-size", size, BareUnit::Mebibytes)?;
    }
    if let Some(share) = args.host_share {
        shape.host_share = match share {
            Share::NineP => HostShareMode::NineP,
            Share::Vhd => HostShareMode::Vhd,
            Share::Vvfat => HostShareMode::Vvfat,
        };
    }
    if args.root_cdrom {
        shape.root_disk = RootDisk::Cdrom;
    }
    Ok(shape)
}

/// The tables that options describe, for a VM of `shape` that the evidence calls simulated or not.
pub(super) fn tables(args: &TableArgs, shape: &VmShape, is_simulated: bool) -> Outcome<Tables> {
    let window = match &args.pci_memory {
        None => PciWindow::OVMF_46_BITS,
        Some(text) => {
            let first = u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .map_err(|_| Failure::usage("measure/option", format!("--pci-memory {text} is no address"), "write it as hex"))?;
            PciWindow::Assigned { first, last: first }
        }
    };
    let trigger = match args.interrupts {
        Some(Interrupts::Level) => InterruptTrigger::Level,
        Some(Interrupts::Edge) => InterruptTrigger::Edge,
        None if shape.qemu_version.major == 8 => InterruptTrigger::Edge,
        None => InterruptTrigger::Level,
    };
    let host = args.host.unwrap_or(if is_simulated { Host::SoftwareTee } else { Host::Hardware });
    Ok(Tables { host, trigger, window })
}

/// Which events the firmware writes: as told, as the image says, or the older ones.
pub(super) fn ovmf(args: &TableArgs, of_image: Option<&str>) -> Outcome<OvmfVariant> {
    let name = args.ovmf.as_deref().or(of_image).unwrap_or("pre202505");
    name.parse().map_err(|error| {
        let error: dstack_measurement::tdx::UnknownOvmfVariant = error;
        Failure::usage("measure/option", error.to_string(), "name it with --ovmf")
    })
}

/// A digest of an option.
pub(super) fn digest(option: &str, text: &str) -> Outcome<Digest384> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Failure::usage("measure/option", format!("{option} is not 96 hex digits"), "give a SHA-384 digest"))
}

/// `2 vCPUs, 2 GiB, QEMU 10.0.2, 1 network card`.
pub(super) fn describe(shape: &VmShape) -> String {
    let mut parts = vec![counted(shape.cpu_count, "vCPU"), memory(shape.memory_size), format!("QEMU {}", shape.qemu_version)];
    parts.push(counted(shape.num_nics, "network card"));
    for (count, name) in [(shape.num_verity_volumes, "volume"), (shape.num_gpus, "GPU")] {
        if count > 0 {
            parts.push(counted(count, name));
        }
    }
    if shape.num_nvswitches > 0 {
        let plural = if shape.num_nvswitches == 1 { "" } else { "es" };
        parts.push(format!("{} NVSwitch{plural}", shape.num_nvswitches));
    }
    let remarks = [
        (shape.hugepages, "huge pages"),
        (shape.hotplug_off, "hot-plug off"),
        (shape.pic, "8259 on"),
        (shape.root_disk == RootDisk::Cdrom, "root on CD-ROM"),
    ];
    parts.extend(remarks.iter().filter(|(holds, _)| *holds).map(|(_, remark)| (*remark).to_owned()));
    parts.join(", ")
}

pub(super) fn counted(count: u32, name: &str) -> String {
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn memory(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}
