//! The ACPI tables that QEMU builds for our command line, and their three digests in RTMR0.
//!
//! QEMU generates the tables on the host; the firmware reads them over `fw_cfg`, measures the three files as they are, and only then
//! fills in addresses and checksums. They are a function of the machine type, the vCPUs, the memory split, the number of PCI devices on
//! the root bus (their kind makes no difference) and of the PCI windows at the time they are read. The generator here is compared byte by
//! byte with four releases of QEMU, see `tests/acpi.rs`. [`recognise`] goes the other way: from digests that were measured to the machine.

mod affinity;
mod aml;
mod cpus;
mod dsdt;
mod extra_root;
mod fixed;
mod hotplug;
mod interrupts;
mod loader;
mod machine;
mod pci;
mod profile;
mod recognise;
mod resource;

use crate::{Digest384, QemuVersion, VmShape, sha384};
use loader::{Loader, RSDP_FILE, TABLES_FILE, Zone};
use machine::Machine;
pub use profile::{AcpiProfile, InterruptTrigger, PciWindow};
pub use recognise::recognise;

/// QEMU allots the tables in blocks of this length.
const TABLES_BLOCK: usize = 0x2_0000;

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
    /// Neither that QEMU nor a machine that runs it was at hand to compare with.
    #[error("ACPI tables of QEMU {0} are not modelled, only those of 8.2, 9.2, 10.0, 11.0 and 11.1")]
    UnknownRelease(QemuVersion),
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

/// The ACPI files of a VM of `shape` under `profile`.
///
/// # Errors
/// [`AcpiError::Unsupported`]: a TPM, more than 255 vCPUs, more than 960 GiB, more than 30 devices, GPUs on huge pages once a firmware has
/// placed them, or a VM that the profile was not compared for.
pub fn tables(shape: &VmShape, profile: AcpiProfile) -> Result<AcpiTables, AcpiError> {
    Ok(assemble(&Machine::new(shape, profile)?))
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
    let mut listed = vec![fadt, place(fixed::madt(machine))];
    if machine.has_numa_node {
        listed.push(place(affinity::srat(machine)));
    }
    listed.extend([place(fixed::mcfg()), place(fixed::waet())]);
    let rsdt = place(fixed::rsdt(&listed.iter().map(|(offset, _)| *offset).collect::<Vec<u32>>()));
    let padded = blob.len().next_multiple_of(TABLES_BLOCK);
    blob.resize(padded, 0);

    let mut loader = Loader::default();
    loader.allocate(RSDP_FILE, 16, Zone::FSegment);
    loader.allocate(TABLES_FILE, 64, Zone::High);
    loader.checksum_table(dsdt.0, dsdt.1);
    for (field, len) in [(36, 4), (40, 4), (140, 8)] {
        loader.add_pointer(TABLES_FILE, fadt.0 + field, len);
    }
    for (offset, len) in &listed {
        loader.checksum_table(*offset, *len);
    }
    for (field, _) in (rsdt.0 + fixed::HEADER_LEN as u32..).step_by(4).zip(&listed) {
        loader.add_pointer(TABLES_FILE, field, 4);
    }
    loader.checksum_table(rsdt.0, rsdt.1);
    loader.add_pointer(RSDP_FILE, 16, 4);
    loader.checksum(RSDP_FILE, 8, 0, 20);

    let rsdp = [b"RSD PTR \0BOCHS \0".as_slice(), &rsdt.0.to_le_bytes()].concat();
    AcpiTables { tables: blob, rsdp, loader: loader.finish() }
}
