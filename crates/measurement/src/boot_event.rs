//! Boot events: what the firmware and the kernel's EFI stub extend into RTMR0 to RTMR2.

use crate::{Digest384, sha384};

/// Event types of the TCG PC Client Platform Firmware Profile that occur in a dstack boot.
pub mod event_type {
    /// Separator between firmware and what it starts.
    pub const SEPARATOR: u32 = 0x4;
    /// Tagged event, used by the kernel's EFI stub.
    pub const EVENT_TAG: u32 = 0x6;
    /// Configuration from the platform; here the ACPI files.
    pub const PLATFORM_CONFIG_FLAGS: u32 = 0xa;
    /// State of a security relevant UEFI variable.
    pub const EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
    /// UEFI variable that selects what is booted.
    pub const EFI_VARIABLE_BOOT: u32 = 0x8000_0002;
    /// A UEFI application that was loaded: the kernel.
    pub const EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
    /// A step of the boot.
    pub const EFI_ACTION: u32 = 0x8000_0007;
    /// Tables handed to the operating system: the SMBIOS structures.
    pub const EFI_HANDOFF_TABLES: u32 = 0x8000_0009;
    /// A firmware volume.
    pub const EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;
    /// A table handed to the firmware: the TD HOB.
    pub const EFI_HANDOFF_TABLES2: u32 = 0x8000_000b;
}

/// One measured step of the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEvent {
    /// Index of the RTMR.
    pub imr: u32,
    /// Event type, one of [`event_type`].
    pub event_type: u32,
    /// Digest the register is extended with.
    pub digest: Digest384,
    /// What was measured, for people. The JSON form on the wire has an empty `event` for boot events.
    pub name: &'static str,
    /// Event data as the firmware logs it. Describes, does not bind: several digests are not hashes of it.
    pub payload: Vec<u8>,
}

/// Values of RTMR0 to RTMR2 after `events`; events of other registers are skipped.
///
/// Source: Intel TDX Module ABI, `TDG.MR.RTMR.EXTEND`: start at zero, then SHA-384 of value and digest.
#[must_use]
pub fn replay(events: &[BootEvent]) -> [Digest384; 3] {
    let mut registers = [[0_u8; 48]; 3];
    for event in events {
        let register = usize::try_from(event.imr).ok().and_then(|imr| registers.get_mut(imr));
        if let Some(register) = register {
            *register = sha384(&[register.as_slice(), &event.digest].concat());
        }
    }
    registers
}
