//! Options of `measure`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which hardware measures the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tee {
    /// Intel TDX: MRTD and RTMR0 to RTMR2.
    Tdx,
    /// AMD SEV-SNP: the launch digest.
    Snp,
}

/// Whose ACPI tables are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// A TDX host: the tables of its QEMU, read after the firmware has placed PCI memory.
    Hardware,
    /// The software TEE of a development stack: its one fixed machine model.
    SoftwareTee,
}

/// How the tables say that interrupts are triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Interrupts {
    /// As on a machine that is not confidential.
    Level,
    /// All of them by edges, which some builds of QEMU report for a TD.
    Edge,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Present.
    On,
    /// Absent.
    Off,
}

/// Order in which QEMU adds and measures firmware pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PageOrder {
    /// Add a page, measure it, go on (QEMU 9 and later).
    SinglePass,
    /// Add all pages of a section, then measure them (QEMU 8).
    TwoPass,
}

/// How the host share is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Share {
    /// A 9p file system.
    #[value(name = "9p")]
    NineP,
    /// A FAT image on a disk.
    Vhd,
    /// A FAT file system that QEMU makes up.
    Vvfat,
}

/// Options of `measure`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct MeasureArgs {
    /// Directory of the OS image, or the name of one in the local store.
    #[arg(value_name = "IMAGE", required_unless_present = "directory")]
    pub image: Option<String>,
    /// The same as IMAGE.
    #[arg(long = "image", value_name = "DIR", conflicts_with = "image")]
    pub directory: Option<String>,
    /// Which hardware measures the launch; default is what the evidence is from, else tdx.
    #[arg(long, value_name = "TEE")]
    pub tee: Option<Tee>,
    /// Explain where this evidence (a quote, an answer of GetQuote, a certificate, a bundle) differs. Its VM is taken from its own
    /// configuration where no option says otherwise. Signatures are not checked; `dstack verify` does that.
    #[arg(long, value_name = "EVIDENCE")]
    pub diff: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub tables: TableArgs,
    /// Use the digests in the image's measurement document and read no other file.
    #[arg(long)]
    pub document: bool,
    /// Print the boot events as well.
    #[arg(long)]
    pub events: bool,
}

/// The VM.
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct MachineArgs {
    /// Virtual CPUs [default: 2].
    #[arg(long = "vcpus", alias = "vcpu", value_name = "N")]
    pub vcpus: Option<u32>,
    /// Memory, such as 2G or 1536M; a bare number is MiB [default: 2G].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Version of the QEMU that starts the VM [default: 10.0.0].
    #[arg(long = "qemu-version", alias = "qemu", value_name = "VERSION")]
    pub qemu: Option<String>,
    /// Network cards [default: 1].
    #[arg(long, value_name = "N")]
    pub nics: Option<u32>,
    /// Read-only data volumes [default: 0].
    #[arg(long, value_name = "N")]
    pub volumes: Option<u32>,
    /// GPUs passed through [default: 0].
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// NVSwitches passed through [default: 0].
    #[arg(long, value_name = "N")]
    pub nvswitches: Option<u32>,
    /// Memory comes from huge pages.
    #[arg(long)]
    pub hugepages: bool,
    /// PCI hot-plug is switched off.
    #[arg(long)]
    pub hotplug_off: bool,
    /// The 8259 interrupt controller [default: on for QEMU 8, else off].
    #[arg(long, value_name = "STATE")]
    pub pic: Option<Switch>,
    /// Order of firmware pages [default: two-pass for QEMU 8, else single-pass].
    #[arg(long, value_name = "ORDER")]
    pub page_order: Option<PageOrder>,
    /// Size of the 64-bit PCI hole, such as 64G [default: QEMU's].
    #[arg(long, value_name = "SIZE")]
    pub pci_hole64_size: Option<String>,
    /// How the host share is attached [default: vhd].
    #[arg(long, value_name = "MODE")]
    pub host_share: Option<Share>,
    /// The root disk is a CD-ROM.
    #[arg(long)]
    pub root_cdrom: bool,
    /// QEMU's name of the CPU model [default: EPYC-v4] (SEV-SNP).
    #[arg(long, value_name = "MODEL")]
    pub vcpu_type: Option<String>,
    /// SEV_FEATURES of a vCPU, such as 0x1 or 0x21 [default: 0x1] (SEV-SNP).
    #[arg(long, value_name = "HEX")]
    pub guest_features: Option<String>,
}

/// What the host puts into memory, and what the firmware makes of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct TableArgs {
    /// Whose ACPI tables are measured [default: hardware, or as the evidence says].
    #[arg(long, value_name = "HOST")]
    pub host: Option<Host>,
    /// Trigger of interrupts in the ACPI tables [default: edge for QEMU 8, else level].
    #[arg(long, value_name = "TRIGGER")]
    pub interrupts: Option<Interrupts>,
    /// Address where the firmware places 64-bit PCI memory, hex [default: 0x380000000000, for 46 address bits].
    #[arg(long, value_name = "ADDRESS")]
    pub pci_memory: Option<String>,
    /// Events of the firmware: pre202505 or since202505 [default: as the image says, else pre202505].
    #[arg(long, value_name = "VARIANT")]
    pub ovmf: Option<String>,
    /// SHA-384 of the SMBIOS structures, which firmware since 202505 measures; hex [default: that in the evidence].
    #[arg(long, value_name = "HEX")]
    pub smbios: Option<String>,
}
