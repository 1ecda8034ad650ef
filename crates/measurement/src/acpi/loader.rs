//! `etc/table-loader`: the commands by which the firmware places the tables, links them and fills in checksums.
//!
//! Source: QEMU `docs/specs/acpi_hw_reduced_hotplug`'s companion interface in `hw/acpi/bios-linker-loader.c`; 128 bytes per command.

const COMMAND_LEN: usize = 128;
const FILE_NAME_LEN: usize = 56;
const LOADER_LEN: usize = 4096;
pub(super) const TABLES_FILE: &str = "etc/acpi/tables";
pub(super) const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Offset of the checksum byte in a table.
const CHECKSUM_AT: u32 = 9;

/// Where an allocated file goes.
#[derive(Clone, Copy)]
pub(super) enum Zone {
    High = 1,
    /// The F segment, where an RSDP is looked for.
    FSegment = 2,
}

/// Builds the command list.
#[derive(Default)]
pub(super) struct Loader {
    commands: Vec<u8>,
}

impl Loader {
    pub(super) fn allocate(&mut self, file: &str, alignment: u32, zone: Zone) {
        self.push(&[file_name(file), alignment.to_le_bytes().to_vec(), vec![zone as u8]], 1);
    }

    /// Adds the address of the tables file to the `len` bytes at `offset` of `file`.
    pub(super) fn add_pointer(&mut self, file: &str, offset: u32, len: u8) {
        self.push(&[file_name(file), file_name(TABLES_FILE), offset.to_le_bytes().to_vec(), vec![len]], 2);
    }

    /// Fills in the checksum of the table at `start` of the tables file.
    pub(super) fn checksum_table(&mut self, start: u32, len: u32) {
        self.checksum(TABLES_FILE, start + CHECKSUM_AT, start, len);
    }

    /// Fills in the checksum of `len` bytes from `start` of `file` at `at`.
    pub(super) fn checksum(&mut self, file: &str, at: u32, start: u32, len: u32) {
        self.push(&[file_name(file), at.to_le_bytes().to_vec(), start.to_le_bytes().to_vec(), len.to_le_bytes().to_vec()], 3);
    }

    /// The file, padded with zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.commands.resize(LOADER_LEN, 0);
        self.commands
    }

    fn push(&mut self, operands: &[Vec<u8>], code: u32) {
        let mut command = [code.to_le_bytes().as_slice(), &operands.concat()].concat();
        command.resize(COMMAND_LEN, 0);
        self.commands.extend(command);
    }
}

fn file_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(FILE_NAME_LEN, 0);
    bytes
}
