//! A VM as QEMU sees it, in types.

use std::path::PathBuf;

/// How guest code runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Emulation, with this CPU model.
    Tcg {
        /// QEMU's name of the model.
        cpu: String,
    },
}

/// What protects the guest from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tee {
    /// Nothing; also the software TEE, which lies outside of QEMU.
    None,
    /// Intel TDX.
    Tdx {
        /// MRCONFIGID.
        mr_config_id: [u8; 48],
        /// vsock port of the quote generation service on the host.
        qgs_port: u16,
    },
    /// AMD SEV-SNP.
    SevSnp {
        /// HOST_DATA.
        host_data: [u8; 32],
        /// As `query-sev-capabilities` reports it.
        cbitpos: u32,
        /// As `query-sev-capabilities` reports it.
        reduced_phys_bits: u32,
    },
}

/// How the guest reaches the host over vsock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockDevice {
    /// The kernel's vhost-vsock.
    Kernel {
        /// The guest's CID.
        cid: u32,
    },
    /// A vhost-user daemon that listens on this socket.
    VhostUser {
        /// Its socket.
        socket: PathBuf,
    },
}

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Host address.
    pub address: String,
    /// Host port.
    pub host_port: u16,
    /// Guest port.
    pub vm_port: u16,
}

/// What a network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicBackend {
    /// QEMU's own network, 10.0.2.0/24.
    User {
        /// Ports of the host.
        forwards: Vec<PortForward>,
    },
    /// A bridge of the host, through QEMU's helper.
    Bridge {
        /// Its name.
        bridge: String,
    },
    /// A prepared tap device.
    Tap {
        /// Its name.
        ifname: String,
    },
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// What it is connected to.
    pub backend: NicBackend,
    /// Hardware address.
    pub mac: [u8; 6],
}

/// A device passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// PCI address, `dddd:bb:dd.f`.
    pub slot: String,
}

/// Everything QEMU's command line depends on. The same plan gives the same arguments; their order is measured by
/// hardware (ACPI tables, RTMR0), so it is part of the contract with verifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// How guest code runs.
    pub accelerator: Accelerator,
    /// What protects it.
    pub tee: Tee,
    /// vCPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mib: u32,
    /// Firmware.
    pub firmware: PathBuf,
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk; `None` for kernels that need none.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Root file system, read-only.
    pub rootfs: Option<PathBuf>,
    /// Data disk, raw.
    pub data_disk: Option<PathBuf>,
    /// Read-only verity volumes, in the order of the app-compose.
    pub volumes: Vec<PathBuf>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// vsock device.
    pub vsock: VsockDevice,
    /// Host share, FAT32 image.
    pub share: Option<PathBuf>,
    /// Serial console output is appended here.
    pub serial_log: PathBuf,
    /// QMP socket.
    pub qmp_socket: PathBuf,
    /// Devices passed through.
    pub gpus: Vec<Gpu>,
}
