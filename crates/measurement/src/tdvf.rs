//! Metadata of a TDX capable firmware image (TDVF).
//!
//! One entry of the image's GUIDed table holds the distance of the TDVF descriptor from the end of
//! the file; the descriptor lists the sections that the VMM adds to the TD. Source: Intel TDX
//! Virtual Firmware Design Guide, chapter 11.

#![deny(clippy::indexing_slicing)]

use crate::guid_table::{self, TableError};
use crate::reader;

/// Page size of a TD's private memory.
pub const PAGE_SIZE: u64 = 4096;

/// Largest firmware image that is looked at.
pub const MAX_FIRMWARE_LEN: usize = 64 << 20;

/// Largest amount of memory that all sections together may describe.
pub const MAX_SECTION_MEMORY: u64 = 256 << 20;

const MAX_SECTIONS: usize = 64;
/// `e47a6535-984a-4798-865e-4685a7bf8ec2` in memory order.
const TDX_METADATA_GUID: [u8; 16] = [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
const DESCRIPTOR_HEADER_LEN: usize = 16;
const SECTION_LEN: usize = 32;
const ATTRIBUTE_MR_EXTEND: u32 = 1;
const ATTRIBUTE_PAGE_AUG: u32 = 2;

/// Why a firmware image has no usable TDVF metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TdvfError {
    /// The image is larger than [`MAX_FIRMWARE_LEN`].
    #[error("firmware image of {len} bytes is larger than {MAX_FIRMWARE_LEN}")]
    TooLarge {
        /// Length of the image.
        len: usize,
    },
    /// The image does not end in the GUIDed table of OVMF.
    #[error("firmware image does not end in a GUIDed table")]
    NoTable,
    /// An entry of the table has an impossible length.
    #[error("entry of the GUIDed table that ends {before_end} bytes before the image does has length {len}")]
    BadEntry {
        /// Distance of the entry's end from the end of the image.
        before_end: usize,
        /// Its stated length.
        len: usize,
    },
    /// The table has no TDX metadata entry, or one that holds too little: a firmware built without TDX support.
    #[error("GUIDed table of the firmware has no TDX metadata entry")]
    NoTdxMetadata,
    /// The descriptor lies outside the image, or has another signature, version or length.
    #[error("TDVF descriptor {distance} bytes before the end of the image is not valid: {what}")]
    BadDescriptor {
        /// Distance from the end of the image.
        distance: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A section breaks a rule.
    #[error("TDVF section {index} is not valid: {what}")]
    BadSection {
        /// Position in the list.
        index: usize,
        /// The rule it breaks.
        what: &'static str,
    },
    /// A section type that QEMU does not load.
    #[error("TDVF section {index} has type {kind}, which is not supported")]
    UnsupportedSection {
        /// Position in the list.
        index: usize,
        /// Its type number.
        kind: u32,
    },
}

impl From<TableError> for TdvfError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::NoTable => Self::NoTable,
            TableError::BadEntry { before_end, len } => Self::BadEntry { before_end, len },
        }
    }
}

/// What a TDVF section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Boot firmware volume: code.
    BootFirmwareVolume,
    /// Configuration firmware volume: the variable store.
    ConfigurationFirmwareVolume,
    /// Where the VMM puts the hand-off block list.
    TdHob,
    /// Memory the firmware uses before it accepts more.
    TemporaryMemory,
}

/// One section that the VMM adds to the TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// Purpose.
    pub kind: SectionKind,
    /// Guest physical address; page aligned.
    pub gpa: u64,
    /// Bytes of guest memory; page aligned, at least as long as `data`.
    pub memory_len: u64,
    /// Initial content; guest memory beyond it is zero.
    pub data: &'a [u8],
    /// The content is measured (`MR.EXTEND`), not only the addresses.
    pub extend: bool,
    /// Pages are added after launch and not measured at all (`PAGE.AUG`).
    pub page_aug: bool,
}

impl Section<'_> {
    /// First address behind the section.
    #[must_use]
    pub fn end(&self) -> u64 {
        // Cannot overflow: checked when parsed.
        self.gpa.saturating_add(self.memory_len)
    }
}

/// The sections of a firmware image, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tdvf<'a> {
    sections: Vec<Section<'a>>,
}

impl<'a> Tdvf<'a> {
    /// Reads the metadata of `firmware`.
    ///
    /// `firmware`: the whole image file, untrusted. Sections must not overlap and must describe at
    /// most [`MAX_SECTION_MEMORY`] together, so that measuring them is bounded.
    ///
    /// # Errors
    /// [`TdvfError`]: not a TDX firmware, or a crafted one.
    pub fn parse(firmware: &'a [u8]) -> Result<Self, TdvfError> {
        if firmware.len() > MAX_FIRMWARE_LEN {
            return Err(TdvfError::TooLarge { len: firmware.len() });
        }
        let distance = find_metadata_distance(firmware)?;
        let sections = parse_descriptor(firmware, distance)?;
        check_sections(&sections)?;
        Ok(Self { sections })
    }

    /// All sections in file order, which is the order they are measured in.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// The only section of `kind`, if there is exactly one.
    #[must_use]
    pub fn only(&self, kind: SectionKind) -> Option<&Section<'a>> {
        let mut found = self.sections.iter().filter(|section| section.kind == kind);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}

/// The TDVF descriptor's distance from the end of the image.
fn find_metadata_distance(firmware: &[u8]) -> Result<usize, TdvfError> {
    let entries = guid_table::entries(firmware)?;
    let metadata = entries.iter().find(|entry| entry.guid == TDX_METADATA_GUID).ok_or(TdvfError::NoTdxMetadata)?;
    let distance_at = metadata.data.len().checked_sub(4).ok_or(TdvfError::NoTdxMetadata)?;
    reader::index32(metadata.data, distance_at).ok_or(TdvfError::NoTdxMetadata)
}

fn parse_descriptor(firmware: &[u8], distance: usize) -> Result<Vec<Section<'_>>, TdvfError> {
    let bad = |what| TdvfError::BadDescriptor { distance, what };
    let at = firmware.len().checked_sub(distance).ok_or_else(|| bad("outside the image"))?;
    let header = reader::slice(firmware, at, DESCRIPTOR_HEADER_LEN).ok_or_else(|| bad("cut off"))?;
    if reader::bytes(header, 0) != Some(*b"TDVF") {
        return Err(bad("signature is not TDVF"));
    }
    if reader::u32(header, 8) != Some(1) {
        return Err(bad("version is not 1"));
    }
    let count = reader::index32(header, 12).ok_or_else(|| bad("cut off"))?;
    if count == 0 || count > MAX_SECTIONS {
        return Err(bad("section count is zero or above 64"));
    }
    // Both conventions exist: the length of the whole descriptor, with or without its header.
    let len = reader::index32(header, 4).ok_or_else(|| bad("cut off"))?;
    let list_len = count * SECTION_LEN;
    if len != list_len + DESCRIPTOR_HEADER_LEN {
        return Err(bad("length does not match the section count"));
    }
    let list = reader::slice(firmware, at + DESCRIPTOR_HEADER_LEN, list_len).ok_or_else(|| bad("section list is cut off"))?;
    list.chunks_exact(SECTION_LEN).enumerate().map(|(index, entry)| parse_section(firmware, index, entry)).collect()
}

fn parse_section<'a>(firmware: &'a [u8], index: usize, entry: &[u8]) -> Result<Section<'a>, TdvfError> {
    let bad = |what| TdvfError::BadSection { index, what };
    let cut = || bad("cut off");
    let data_at = reader::index32(entry, 0).ok_or_else(cut)?;
    let data_len = reader::index32(entry, 4).ok_or_else(cut)?;
    let gpa = reader::u64(entry, 8).ok_or_else(cut)?;
    let memory_len = reader::u64(entry, 16).ok_or_else(cut)?;
    let kind = match reader::u32(entry, 24).ok_or_else(cut)? {
        0 => SectionKind::BootFirmwareVolume,
        1 => SectionKind::ConfigurationFirmwareVolume,
        2 => SectionKind::TdHob,
        3 => SectionKind::TemporaryMemory,
        kind => return Err(TdvfError::UnsupportedSection { index, kind }),
    };
    let attributes = reader::u32(entry, 28).ok_or_else(cut)?;
    if attributes & !(ATTRIBUTE_MR_EXTEND | ATTRIBUTE_PAGE_AUG) != 0 {
        return Err(bad("unknown attribute"));
    }
    if !gpa.is_multiple_of(PAGE_SIZE) || !memory_len.is_multiple_of(PAGE_SIZE) {
        return Err(bad("address or length is not page aligned"));
    }
    if memory_len == 0 || gpa.checked_add(memory_len).is_none() {
        return Err(bad("memory range is empty or wraps around"));
    }
    let data =
        if data_len == 0 { &[] } else { reader::slice(firmware, data_at, data_len).ok_or_else(|| bad("data lies outside the image"))? };
    if u64::try_from(data_len).map_or(true, |len| len > memory_len) {
        return Err(bad("data is longer than its memory"));
    }
    let extend = attributes & ATTRIBUTE_MR_EXTEND != 0;
    let page_aug = attributes & ATTRIBUTE_PAGE_AUG != 0;
    Ok(Section { kind, gpa, memory_len, data, extend, page_aug })
}

fn check_sections(sections: &[Section<'_>]) -> Result<(), TdvfError> {
    let mut total = 0_u64;
    for (index, section) in sections.iter().enumerate() {
        let bad = |what| TdvfError::BadSection { index, what };
        total = total.saturating_add(section.memory_len);
        if total > MAX_SECTION_MEMORY {
            return Err(bad("sections describe more than 256 MiB"));
        }
        let overlaps = |other: &Section<'_>| section.gpa < other.end() && other.gpa < section.end();
        if sections.iter().take(index).any(overlaps) {
            return Err(bad("overlaps an earlier section"));
        }
    }
    Ok(())
}
