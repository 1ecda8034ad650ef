//! The registers and the event log that a launch of an image on a VM must produce.

use super::document::{STOCK_CFV_DIGEST, measure_cmdline};
use super::{ImageError, ImageFiles, ImageMeasurement, OvmfVariant};
use crate::acpi::AcpiDigests;
use crate::boot_event::event_type as kind;
use crate::kernel::{self, KernelPlacement};
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
/// Load option of the firmware's built-in application, the only boot entry of an empty variable store: attributes, length of the
/// device path, "UiApp", and the path firmware volume `7cb8bdc9-…` / file `462caa21-…`.
const BOOT0000: &[u8] = b"\x09\x01\x00\x00\x2c\x00U\0i\0A\0p\0p\0\0\0\
    \x04\x07\x14\x00\xc9\xbd\xb8\x7c\xeb\xf8\x34\x4f\xaa\xea\x3e\xe4\xaf\x65\x16\xa1\
    \x04\x06\x14\x00\x21\xaa\x2c\x46\x14\x76\x03\x45\x83\x6e\x8a\xb6\xf4\x66\x23\x31\x7f\xff\x04\x00";
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
    /// The document holds the kernel as patched by QEMU before 10.2. The image files are needed.
    #[error("the measurement document does not cover QEMU {0}, which leaves the kernel unpatched")]
    UnsupportedQemu(QemuVersion),
}

/// Registers and events of a VM of `shape` that boots the image described by `image`.
///
/// `acpi`: digests of the ACPI files, computed by [`crate::acpi::tables`] or taken from an event log whose content is then unchecked.
///
/// # Errors
/// [`LaunchError::UnsupportedMemory`], [`LaunchError::UnsupportedQemu`]: the document cannot tell, see [`expected_from_files`].
pub fn expected(image: &ImageMeasurement, shape: &VmShape, acpi: &AcpiDigests) -> Result<ExpectedLaunch, LaunchError> {
    if shape.memory_below_4g() != 1 << 31 {
        return Err(LaunchError::UnsupportedMemory { memory_size: shape.memory_size });
    }
    if !shape.qemu_version.patches_kernel_header() {
        return Err(LaunchError::UnsupportedQemu(shape.qemu_version));
    }
    let OvmfVariant::Pre202505 = image.ovmf;
    launch(&Material {
        mrtd: image.mrtd(shape.page_add_order),
        td_hob: &image.td_hob,
        cfv: STOCK_CFV,
        kernel: image.kernel_authenticode,
        cmdline: image.cmdline_sha384,
        initrd: image.initrd_sha384,
        memory_size: shape.memory_size,
        acpi,
    })
}

/// Registers and events of a VM of `shape` that boots `files`; covers every memory size and QEMU from 8.0 on.
///
/// The variable store is taken from the firmware; its other events are those of OVMF before edk2-stable202505.
///
/// # Errors
/// [`LaunchError`]: a file cannot be measured, or does not fit the VM.
pub fn expected_from_files(files: &ImageFiles<'_>, shape: &VmShape, acpi: &AcpiDigests) -> Result<ExpectedLaunch, LaunchError> {
    let tdvf = Tdvf::parse(files.firmware).map_err(ImageError::from)?;
    let td_hob = TdHobWitness::from_tdvf(&tdvf).map_err(ImageError::from)?;
    let store =
        tdvf.only(SectionKind::ConfigurationFirmwareVolume).ok_or_else(|| ImageError::UnknownVariableStore { digest: String::new() })?;
    let kernel =
        kernel::measure(files.kernel, files.initrd.len(), files.cmdline, KernelPlacement::from(shape)).map_err(ImageError::from)?;
    launch(&Material {
        mrtd: mrtd(&tdvf, shape.page_add_order),
        td_hob: &td_hob,
        cfv: ConfigurationVolume { digest: sha384(store.data), gpa: store.gpa, len: store.memory_len },
        kernel,
        cmdline: measure_cmdline(files.cmdline),
        initrd: sha384(files.initrd),
        memory_size: shape.memory_size,
        acpi,
    })
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
    kernel: Digest384,
    cmdline: Digest384,
    initrd: Digest384,
    memory_size: u64,
    acpi: &'a AcpiDigests,
}

fn launch(material: &Material<'_>) -> Result<ExpectedLaunch, LaunchError> {
    let memory_size = material.memory_size;
    let td_hob = material.td_hob.td_hob(memory_size).map_err(|source| LaunchError::MemoryMap { memory_size, source })?;
    let mut events = firmware_events(material, &td_hob);
    events.extend(boot_events(material));
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
    vec![
        event(0, kind::EFI_HANDOFF_TABLES2, sha384(td_hob), "TD HOB", &hob_table),
        event(0, kind::EFI_PLATFORM_FIRMWARE_BLOB2, cfv.digest, "variable store", &volume),
        variable(&GLOBAL_VARIABLE_GUID, "SecureBoot"),
        variable(&GLOBAL_VARIABLE_GUID, "PK"),
        variable(&GLOBAL_VARIABLE_GUID, "KEK"),
        variable(&IMAGE_SECURITY_GUID, "db"),
        variable(&IMAGE_SECURITY_GUID, "dbx"),
        separator(0),
        acpi(material.acpi.loader, "ACPI table loader"),
        acpi(material.acpi.rsdp, "ACPI RSDP"),
        acpi(material.acpi.tables, "ACPI tables"),
    ]
}

/// Events from the kernel's start on.
fn boot_events(material: &Material<'_>) -> Vec<BootEvent> {
    let boot_variable =
        |name, data: &[u8]| event(0, kind::EFI_VARIABLE_BOOT, sha384(data), name, &variable_data(&GLOBAL_VARIABLE_GUID, name, data));
    let action = |name: &'static str| event(1, kind::EFI_ACTION, sha384(name.as_bytes()), name, name.as_bytes());
    let tagged = |id: u32, text: &[u8]| {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [id.to_le_bytes().as_slice(), &len.to_le_bytes(), text].concat()
    };
    vec![
        // The payload names the load address, which is not known beforehand.
        event(1, kind::EFI_BOOT_SERVICES_APPLICATION, material.kernel, "kernel", &[]),
        boot_variable("BootOrder", &[0, 0]),
        boot_variable("Boot0000", BOOT0000),
        action("Calling EFI Application from Boot Option"),
        separator(1),
        event(2, kind::EVENT_TAG, material.cmdline, "kernel command line", &tagged(0x8f3b_22ed, b"LOADED_IMAGE::LoadOptions\0")),
        event(2, kind::EVENT_TAG, material.initrd, "initrd", &tagged(0x8f3b_22ec, b"Linux initrd\0")),
        action("Exit Boot Services Invocation"),
        action("Exit Boot Services Returned with Success"),
    ]
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
