//! The registers and the event log that a launch of an image on a VM must produce.

use super::document::{STOCK_CFV_DIGEST, measure_cmdline};
use super::{ImageError, ImageFiles, ImageMeasurement, ImageParts, InitrdDigest, OvmfVariant};
use crate::acpi::AcpiDigests;
use crate::boot_event::event_type as kind;
use crate::kernel::{self, KernelPlacement, SetupHeader};
use crate::kernel_blob::KernelBlob;
use crate::mrtd::mrtd;
use crate::td_hob::{TdHobError, TdHobWitness};
use crate::tdvf::{SectionKind, Tdvf};
use crate::{BootEvent, Digest384, QemuVersion, VmShape, replay, sha384};

/// `8be4df61-93ca-11d2-aa0d-00e098032b8c` in memory order.
const GLOBAL_VARIABLE_GUID: [u8; 16] = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// `d719b2cb-3d3a-4596-a3bc-dad00e67656f` in memory order.
const IMAGE_SECURITY_GUID: [u8; 16] = [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// `93bb96af-b9f2-4eb8-9462-e0ba74564236`, the HOB list table, in memory order.
const HOB_LIST_GUID: [u8; 16] = [0xaf, 0x96, 0xbb, 0x93, 0xf2, 0xb9, 0xb8, 0x4e, 0x94, 0x62, 0xe0, 0xba, 0x74, 0x56, 0x42, 0x36];
/// The setup application of the firmware, `462caa21-7614-4503-836e-8ab6f4662331` in memory order.
const UI_APP_FILE: [u8; 16] = [0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31];
/// Its boot manager menu, `eec25bdc-67f2-4d95-b1d5-f81b2039d11d` in memory order.
const BOOT_MENU_FILE: [u8; 16] = [0xdc, 0x5b, 0xc2, 0xee, 0xf2, 0x67, 0x95, 0x4d, 0xb1, 0xd5, 0xf8, 0x1b, 0x20, 0x39, 0xd1, 0x1d];
/// The firmware volume with both, `7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1` in memory order.
const APPLICATION_VOLUME: [u8; 16] = [0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1];
/// Attributes of a load option: active, an application.
const APPLICATION: u32 = 0x101;
/// The same, not shown in a menu.
const HIDDEN_APPLICATION: u32 = 0x109;
/// `fw_cfg` item "boot menu": off.
const BOOT_MENU: [u8; 2] = [0, 0];
/// `fw_cfg` file "bootorder" of a VM that QEMU boots from `-kernel`: no device of ours has a place in it.
const BOOT_ORDER_FILE: &[u8] = b"/rom@genroms/linuxboot_dma.bin\0";
const STOCK_CFV: ConfigurationVolume = ConfigurationVolume { digest: STOCK_CFV_DIGEST, gpa: 0xffc0_0000, len: 0x8_4000 };

/// MRTD and RTMR0 to RTMR2 of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdxRegisters {
    /// Firmware, as it was added to the TD.
    pub mrtd: Digest384,
    /// Memory map, variables and ACPI tables.
    pub rtmr0: Digest384,
    /// Kernel.
    pub rtmr1: Digest384,
    /// Command line and initrd.
    pub rtmr2: Digest384,
}

/// What a launch must produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedLaunch {
    /// The registers before any runtime event.
    pub registers: TdxRegisters,
    /// The boot event log in the order it is written; replays to RTMR0 to RTMR2.
    pub events: Vec<BootEvent>,
}

/// Digests of what QEMU hands to the firmware besides the image. Made from [`AcpiDigests`] alone for firmware that measures nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTables {
    /// The ACPI files.
    pub acpi: AcpiDigests,
    /// The SMBIOS structures, which firmware of [`OvmfVariant::Since202505`] measures. They name the model of the host's CPU, so that
    /// they do not follow from image and shape; take them from an event log.
    pub smbios: Option<Digest384>,
}

impl From<AcpiDigests> for HostTables {
    fn from(acpi: AcpiDigests) -> Self {
        Self { acpi, smbios: None }
    }
}

impl From<&AcpiDigests> for HostTables {
    fn from(acpi: &AcpiDigests) -> Self {
        Self::from(*acpi)
    }
}

/// Why the launch of a VM cannot be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A file of the image cannot be measured.
    #[error("image files")]
    Image(#[from] ImageError),
    /// The memory map does not fit the VM.
    #[error("memory map of a VM with {memory_size} bytes")]
    MemoryMap {
        /// Memory of the VM.
        memory_size: u64,
        /// Why not.
        #[source]
        source: TdHobError,
    },
    /// The document holds the kernel as patched for 2 GiB below 4 GiB; this VM has another layout. The image files are needed.
    #[error("the measurement document does not cover a VM of {memory_size} bytes, only 2 GiB and 2.75 GiB or more")]
    UnsupportedMemory {
        /// Memory of the VM.
        memory_size: u64,
    },
    /// A document of version 3 holds the kernel as patched by QEMU; this one leaves it unpatched. The image files are needed.
    #[error("the measurement document does not cover QEMU {0}, which leaves the kernel unpatched")]
    UnsupportedQemu(QemuVersion),
    /// The firmware measures the SMBIOS structures and no digest of them is given.
    #[error("the firmware measures the SMBIOS structures of the host, whose digest is not known")]
    UnknownSmbios,
}

/// Registers and events of a VM of `shape` that boots the image described by `image`.
///
/// `host`: digests of the ACPI files (and of SMBIOS), computed by [`crate::acpi::tables`] or taken from an event log whose content is
/// then unchecked.
///
/// A document of version 3 holds one digest of the kernel, the patched one. Precondition for it on QEMU 10.0 and 10.1: the firmware is
/// older than edk2-stable202502, which the document does not say; with a later one RTMR1 comes out as another than is measured.
///
/// # Errors
/// [`LaunchError::UnsupportedMemory`], [`LaunchError::UnsupportedQemu`]: the document cannot tell, see [`expected_from_files`].
pub fn expected(image: &ImageMeasurement, shape: &VmShape, host: impl Into<HostTables>) -> Result<ExpectedLaunch, LaunchError> {
    let blob = match (image.unpatched_kernel, image.ovmf) {
        (Some(kernel), _) => kernel.blob,
        (None, OvmfVariant::Since202505) => KernelBlob::Named,
        (None, OvmfVariant::Pre202505) => KernelBlob::Patched,
    };
    let kernel = if KernelPlacement::new(shape, blob).header == SetupHeader::Unchanged {
        image.unpatched_kernel.ok_or(LaunchError::UnsupportedQemu(shape.qemu_version))?.authenticode
    } else if shape.memory_below_4g() == 1 << 31 {
        image.kernel_authenticode
    } else {
        return Err(LaunchError::UnsupportedMemory { memory_size: shape.memory_size });
    };
    launch(&Material {
        mrtd: image.mrtd(shape.page_add_order),
        td_hob: &image.td_hob,
        cfv: STOCK_CFV,
        ovmf: image.ovmf,
        kernel,
        cmdline: image.cmdline_sha384,
        initrd: image.initrd_sha384,
        memory_size: shape.memory_size,
        host: host.into(),
    })
}

/// Registers and events of a VM of `shape` that boots `files`; covers every memory size and QEMU from 8.0 on.
///
/// The variable store is taken from the firmware; its other events are those of OVMF before edk2-stable202505. For a later one, see
/// [`expected_from_parts`].
///
/// # Errors
/// [`LaunchError`]: a file cannot be measured, or does not fit the VM.
pub fn expected_from_files(files: &ImageFiles<'_>, shape: &VmShape, host: impl Into<HostTables>) -> Result<ExpectedLaunch, LaunchError> {
    let parts = ImageParts {
        firmware: files.firmware,
        kernel: files.kernel,
        initrd: InitrdDigest { sha384: sha384(files.initrd), len: files.initrd.len() },
        cmdline: files.cmdline,
        ovmf: OvmfVariant::Pre202505,
        blob: None,
    };
    expected_from_parts(&parts, shape, host)
}

/// Like [`expected_from_files`], with an initrd that was hashed elsewhere and any known firmware.
///
/// # Errors
/// [`LaunchError`]: a file cannot be measured, or does not fit the VM.
pub fn expected_from_parts(parts: &ImageParts<'_>, shape: &VmShape, host: impl Into<HostTables>) -> Result<ExpectedLaunch, LaunchError> {
    let tdvf = Tdvf::parse(parts.firmware).map_err(ImageError::from)?;
    let td_hob = TdHobWitness::from_tdvf(&tdvf).map_err(ImageError::from)?;
    let store =
        tdvf.only(SectionKind::ConfigurationFirmwareVolume).ok_or_else(|| ImageError::UnknownVariableStore { digest: String::new() })?;
    let placement = KernelPlacement::new(shape, parts.blob.unwrap_or_else(|| kernel_blob(parts, shape)));
    let kernel = kernel::measure(parts.kernel, parts.initrd.len, parts.cmdline, placement).map_err(ImageError::from)?;
    launch(&Material {
        mrtd: mrtd(&tdvf, shape.page_add_order),
        td_hob: &td_hob,
        cfv: ConfigurationVolume { digest: sha384(store.data), gpa: store.gpa, len: store.memory_len },
        ovmf: parts.ovmf,
        kernel,
        cmdline: measure_cmdline(parts.cmdline, parts.ovmf),
        initrd: parts.initrd.sha384,
        memory_size: shape.memory_size,
        host: host.into(),
    })
}

/// Looks into the firmware only where that decides: on QEMU 10.0 and 10.1, if it is not a later one anyway.
fn kernel_blob(parts: &ImageParts<'_>, shape: &VmShape) -> KernelBlob {
    let version = shape.qemu_version;
    match parts.ovmf {
        OvmfVariant::Since202505 => KernelBlob::Named,
        OvmfVariant::Pre202505 if version.offers_named_kernel() && version.patches_kernel_header() => {
            KernelBlob::of_firmware(parts.firmware)
        }
        OvmfVariant::Pre202505 => KernelBlob::Patched,
    }
}

struct ConfigurationVolume {
    digest: Digest384,
    gpa: u64,
    len: u64,
}

struct Material<'a> {
    mrtd: Digest384,
    td_hob: &'a TdHobWitness,
    cfv: ConfigurationVolume,
    ovmf: OvmfVariant,
    kernel: Digest384,
    cmdline: Digest384,
    initrd: Digest384,
    memory_size: u64,
    host: HostTables,
}

fn launch(material: &Material<'_>) -> Result<ExpectedLaunch, LaunchError> {
    let memory_size = material.memory_size;
    let td_hob = material.td_hob.td_hob(memory_size).map_err(|source| LaunchError::MemoryMap { memory_size, source })?;
    let mut events = firmware_events(material, &td_hob);
    events.extend(boot_selection(material)?);
    events.extend(kernel_events(material));
    let [rtmr0, rtmr1, rtmr2] = replay(&events);
    Ok(ExpectedLaunch { registers: TdxRegisters { mrtd: material.mrtd, rtmr0, rtmr1, rtmr2 }, events })
}

/// Events of the firmware before it selects what to boot, all in RTMR0.
fn firmware_events(material: &Material<'_>, td_hob: &[u8]) -> Vec<BootEvent> {
    let hob_table =
        [b"\x09TdxTable\0", 1_u64.to_le_bytes().as_slice(), &HOB_LIST_GUID, &material.td_hob.hob_address().to_le_bytes()].concat();
    let cfv = &material.cfv;
    let volume = [b"\x29Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0".as_slice(), &cfv.gpa.to_le_bytes(), &cfv.len.to_le_bytes()].concat();
    let variable = |guid, name| {
        let payload = variable_data(guid, name, &[]);
        event(0, kind::EFI_VARIABLE_DRIVER_CONFIG, sha384(&payload), name, &payload)
    };
    let acpi = |digest, name| event(0, kind::PLATFORM_CONFIG_FLAGS, digest, name, b"ACPI DATA");
    let mut events = vec![
        event(0, kind::EFI_HANDOFF_TABLES2, sha384(td_hob), "TD HOB", &hob_table),
        event(0, kind::EFI_PLATFORM_FIRMWARE_BLOB2, cfv.digest, "variable store", &volume),
    ];
    if material.ovmf == OvmfVariant::Since202505 {
        events.extend([configuration_item("BootMenu", &BOOT_MENU), configuration_item("bootorder", BOOT_ORDER_FILE)]);
    }
    events.extend([
        variable(&GLOBAL_VARIABLE_GUID, "SecureBoot"),
        variable(&GLOBAL_VARIABLE_GUID, "PK"),
        variable(&GLOBAL_VARIABLE_GUID, "KEK"),
        variable(&IMAGE_SECURITY_GUID, "db"),
        variable(&IMAGE_SECURITY_GUID, "dbx"),
        separator(0),
        acpi(material.host.acpi.loader, "ACPI table loader"),
        acpi(material.host.acpi.rsdp, "ACPI RSDP"),
        acpi(material.host.acpi.tables, "ACPI tables"),
    ]);
    events
}

/// An item that the firmware read from `fw_cfg`; the payload is a label and a name in a field of 56 bytes.
fn configuration_item(name: &'static str, content: &[u8]) -> BootEvent {
    let mut payload = [b"QEMU FW CFG\0".as_slice(), name.as_bytes()].concat();
    payload.resize(12 + 56, 0);
    event(0, kind::PLATFORM_CONFIG_FLAGS, sha384(content), name, &payload)
}

/// The kernel is loaded, then the firmware looks at what an empty variable store lets it boot.
fn boot_selection(material: &Material<'_>) -> Result<Vec<BootEvent>, LaunchError> {
    let boot_variable =
        |name, data: &[u8]| event(0, kind::EFI_VARIABLE_BOOT, sha384(data), name, &variable_data(&GLOBAL_VARIABLE_GUID, name, data));
    // The payload names the load address, which is not known beforehand.
    let mut events = vec![event(1, kind::EFI_BOOT_SERVICES_APPLICATION, material.kernel, "kernel", &[])];
    match material.ovmf {
        OvmfVariant::Pre202505 => events.extend([
            boot_variable("BootOrder", &[0, 0]),
            boot_variable("Boot0000", &load_option(HIDDEN_APPLICATION, "UiApp", &UI_APP_FILE)),
        ]),
        OvmfVariant::Since202505 => {
            let smbios = material.host.smbios.ok_or(LaunchError::UnknownSmbios)?;
            events.extend([
                event(0, kind::EFI_HANDOFF_TABLES, smbios, "SMBIOS structures", &[]),
                boot_variable("BootOrder", &[0, 0, 1, 0]),
                boot_variable("Boot0000", &load_option(HIDDEN_APPLICATION, "BootManagerMenuApp", &BOOT_MENU_FILE)),
                boot_variable("Boot0001", &load_option(APPLICATION, "EFI Firmware Setup", &UI_APP_FILE)),
            ]);
        }
    }
    Ok(events)
}

/// Events from the kernel's start on.
fn kernel_events(material: &Material<'_>) -> Vec<BootEvent> {
    let action = |name: &'static str| event(1, kind::EFI_ACTION, sha384(name.as_bytes()), name, name.as_bytes());
    let tagged = |id: u32, text: &[u8]| {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [id.to_le_bytes().as_slice(), &len.to_le_bytes(), text].concat()
    };
    vec![
        action("Calling EFI Application from Boot Option"),
        separator(1),
        event(2, kind::EVENT_TAG, material.cmdline, "kernel command line", &tagged(0x8f3b_22ed, b"LOADED_IMAGE::LoadOptions\0")),
        event(2, kind::EVENT_TAG, material.initrd, "initrd", &tagged(0x8f3b_22ec, b"Linux initrd\0")),
        action("Exit Boot Services Invocation"),
        action("Exit Boot Services Returned with Success"),
    ]
}

/// `EFI_LOAD_OPTION` of an application inside the firmware: attributes, length of the device path, title, and a path of volume, file and end.
fn load_option(attributes: u32, title: &str, file: &[u8; 16]) -> Vec<u8> {
    let title: Vec<u8> = title.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let path = [b"\x04\x07\x14\x00".as_slice(), &APPLICATION_VOLUME, b"\x04\x06\x14\x00", file, b"\x7f\xff\x04\x00"].concat();
    [attributes.to_le_bytes().as_slice(), b"\x2c\x00", &title, &path].concat()
}

fn event(imr: u32, event_type: u32, digest: Digest384, name: &'static str, payload: &[u8]) -> BootEvent {
    BootEvent { imr, event_type, digest, name, payload: payload.to_vec() }
}

fn separator(imr: u32) -> BootEvent {
    event(imr, kind::SEPARATOR, sha384(&[0; 4]), "separator", &[0; 4])
}

/// `UEFI_VARIABLE_DATA`: GUID, length of the name in characters, length of the data, name, data.
fn variable_data(guid: &[u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let length = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX).to_le_bytes();
    [guid.as_slice(), &length(name.len() / 2), &length(data.len()), &name, data].concat()
}
