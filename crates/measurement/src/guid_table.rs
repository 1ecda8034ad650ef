//! The table of GUIDed entries that ends an OVMF image.
//!
//! It is read backward from its footer, 32 bytes before the end of the image. Each entry is its data, a `u16` length of the
//! whole entry, and a GUID in memory order. Source: the reset vector of OVMF.

#![deny(clippy::indexing_slicing)]

use crate::reader;

/// `96b582de-1fb2-45f7-baea-a366c55a082d` in memory order.
const FOOTER_GUID: [u8; 16] = [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
/// Distance of the footer's GUID from the end of the image.
const FOOTER_GUID_DISTANCE: usize = 48;
const ENTRY_HEADER_LEN: usize = 18;

/// Why an image has no readable table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableError {
    /// The image does not end in the footer.
    NoTable,
    /// An entry of impossible length.
    BadEntry { before_end: usize, len: usize },
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// GUID in memory order.
    pub(crate) guid: [u8; 16],
    /// What stands before the entry's header.
    pub(crate) data: &'a [u8],
}

/// The entries of `firmware`, last one first.
pub(crate) fn entries(firmware: &[u8]) -> Result<Vec<Entry<'_>>, TableError> {
    let footer_guid_at = firmware.len().checked_sub(FOOTER_GUID_DISTANCE).ok_or(TableError::NoTable)?;
    if reader::bytes(firmware, footer_guid_at) != Some(FOOTER_GUID) {
        return Err(TableError::NoTable);
    }
    let footer_at = footer_guid_at.checked_sub(2).ok_or(TableError::NoTable)?;
    let table_len = usize::from(reader::u16(firmware, footer_at).ok_or(TableError::NoTable)?);
    // The length counts the footer itself.
    let entries_len = table_len.checked_sub(ENTRY_HEADER_LEN).ok_or(TableError::NoTable)?;
    let start = footer_at.checked_sub(entries_len).ok_or(TableError::NoTable)?;
    let mut found = Vec::new();
    let mut end = footer_at;
    while end > start {
        let (entry, at) = entry_before(firmware, start, end)?;
        found.push(entry);
        end = at;
    }
    Ok(found)
}

/// The entry that ends at `end`, and where it starts.
fn entry_before(firmware: &[u8], start: usize, end: usize) -> Result<(Entry<'_>, usize), TableError> {
    let bad = |len| TableError::BadEntry { before_end: firmware.len() - end, len };
    let header_at = end.checked_sub(ENTRY_HEADER_LEN).filter(|at| *at >= start).ok_or_else(|| bad(0))?;
    let len = usize::from(reader::u16(firmware, header_at).ok_or_else(|| bad(0))?);
    let at = end.checked_sub(len).filter(|at| *at >= start && len >= ENTRY_HEADER_LEN).ok_or_else(|| bad(len))?;
    let guid = reader::bytes(firmware, header_at + 2).ok_or_else(|| bad(len))?;
    let data = firmware.get(at..header_at).ok_or_else(|| bad(len))?;
    Ok((Entry { guid, data }, at))
}
