//! The ACPI tables that QEMU builds for our command line, and their three digests in RTMR0.

use crate::{Digest384, sha384};

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
