//! The page with the hashes of a directly booted kernel, which the firmware compares with what the host hands it.

use sha2::{Digest as _, Sha256};

/// `9438d606-4f22-4cc9-b479-a793d411fd21` in memory order.
const TABLE_GUID: [u8; 16] = [0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21];
/// `97d02dd8-bd20-4c94-aa78-e7714d36ab2a` in memory order.
const CMDLINE_GUID: [u8; 16] = [0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a];
/// `44baf731-3a2f-4bd7-9af1-41e29169781d` in memory order.
const INITRD_GUID: [u8; 16] = [0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d];
/// `4de79437-abd2-427f-b835-d5b172d2045b` in memory order.
const KERNEL_GUID: [u8; 16] = [0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b];
const HEADER_LEN: usize = 18;
const ENTRY_LEN: usize = HEADER_LEN + 32;
const TABLE_LEN: usize = HEADER_LEN + 3 * ENTRY_LEN;
/// QEMU pads the table to a multiple of 16.
pub(super) const PADDED_TABLE_LEN: usize = TABLE_LEN.next_multiple_of(16);
pub(super) const PAGE_LEN: usize = 4096;

/// SHA-256 of kernel, initrd and command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelHashes {
    /// Of the kernel file. QEMU leaves its header unpatched for SEV guests.
    pub kernel: [u8; 32],
    /// Of the initrd; of nothing where there is none.
    pub initrd: [u8; 32],
    /// Of the command line with its NUL.
    pub cmdline: [u8; 32],
}

impl KernelHashes {
    /// Hashes the files. `initrd` is empty where there is none.
    #[must_use]
    pub fn from_files(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Self {
        Self { kernel: Sha256::digest(kernel).into(), initrd: Sha256::digest(initrd).into(), cmdline: hash_cmdline(cmdline) }
    }

    /// The page QEMU writes: the table at `offset`, zeros elsewhere. `None` if the table does not fit.
    pub(super) fn page(&self, offset: usize) -> Option<[u8; PAGE_LEN]> {
        let mut table = header(TABLE_GUID, TABLE_LEN);
        for (guid, hash) in [(CMDLINE_GUID, &self.cmdline), (INITRD_GUID, &self.initrd), (KERNEL_GUID, &self.kernel)] {
            table.extend(header(guid, ENTRY_LEN));
            table.extend(hash);
        }
        table.resize(PADDED_TABLE_LEN, 0);
        let mut page = [0; PAGE_LEN];
        page.get_mut(offset..offset.checked_add(PADDED_TABLE_LEN)?)?.copy_from_slice(&table);
        Some(page)
    }
}

/// SHA-256 of the command line as the firmware gets it, NUL included.
pub(super) fn hash_cmdline(cmdline: &str) -> [u8; 32] {
    Sha256::new().chain_update(cmdline).chain_update([0]).finalize().into()
}

fn header(guid: [u8; 16], len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    [guid.as_slice(), &len.to_le_bytes()].concat()
}
