//! What an OVMF image says about its launch under SEV-SNP.

#![deny(clippy::indexing_slicing)]

use crate::guid_table::{self, Entry, TableError};
use crate::reader;
use crate::tdvf::MAX_FIRMWARE_LEN;

/// `dc886566-984a-4798-a75e-5585a7bf67cc` in memory order.
const METADATA_GUID: [u8; 16] = [0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc];
/// `7255371f-3a3b-4b04-927b-1da6efa8d454` in memory order.
const HASHES_TABLE_GUID: [u8; 16] = [0x1f, 0x37, 0x55, 0x72, 0x3b, 0x3a, 0x04, 0x4b, 0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54];
/// `00f771de-1a7e-4fcb-890e-68c77e2fb44e` in memory order.
const RESET_BLOCK_GUID: [u8; 16] = [0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e];
const PAGE: u32 = 4096;
const HEADER_LEN: usize = 16;
const SECTION_LEN: usize = 12;
/// Largest number of sections that is read.
const MAX_SECTIONS: usize = 64;
/// Largest memory that all sections together may describe, so that measuring them is bounded.
const MAX_SECTION_MEMORY: u64 = 256 << 20;

/// Why an image cannot be measured for SEV-SNP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SevFirmwareError {
    /// Larger than any OVMF.
    #[error("firmware image of {len} bytes is larger than {MAX_FIRMWARE_LEN}")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// Not whole pages.
    #[error("firmware image of {len} bytes is not a number of 4096-byte pages")]
    NotPages {
        /// Its length.
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
    /// An entry stands twice, or holds too little.
    #[error("GUIDed table of the firmware has an unusable entry for {name}")]
    BadItem {
        /// What the entry is about.
        name: &'static str,
    },
    /// No SEV metadata entry.
    #[error("GUIDed table of the firmware has no SEV metadata entry")]
    NoMetadata,
    /// The list of sections is outside the image, or malformed.
    #[error("SEV metadata {distance} bytes before the end of the image is not valid: {what}")]
    BadMetadata {
        /// Distance from the end of the image.
        distance: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A section breaks a rule.
    #[error("SEV section {index} is not valid: {what}")]
    BadSection {
        /// Position in the list.
        index: usize,
        /// The rule.
        what: &'static str,
    },
    /// A section of a type that QEMU does not load.
    #[error("SEV section {index} has type {kind}, which is not supported")]
    UnknownSection {
        /// Position in the list.
        index: usize,
        /// Its number.
        kind: u32,
    },
    /// The table of hashes lies outside the page for it.
    #[error("table of kernel hashes at {gpa:#x} lies outside the page the firmware has for it")]
    HashesTableOutside {
        /// Address.
        gpa: u32,
    },
}

impl From<TableError> for SevFirmwareError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::NoTable => Self::NoTable,
            TableError::BadEntry { before_end, len } => Self::BadEntry { before_end, len },
        }
    }
}

/// What a section of guest memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Memory the firmware uses before it accepts more: zero pages.
    SecMemory,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// Calling area of a service module: zero pages.
    CallingArea,
    /// Hashes of kernel, initrd and command line.
    KernelHashes,
}

impl SectionKind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::SecMemory),
            2 => Some(Self::Secrets),
            3 => Some(Self::Cpuid),
            4 => Some(Self::CallingArea),
            0x10 => Some(Self::KernelHashes),
            _ => None,
        }
    }

    pub(super) fn number(self) -> u32 {
        match self {
            Self::SecMemory => 1,
            Self::Secrets => 2,
            Self::Cpuid => 3,
            Self::CallingArea => 4,
            Self::KernelHashes => 0x10,
        }
    }

    fn is_one_page(self) -> bool {
        matches!(self, Self::Secrets | Self::Cpuid | Self::KernelHashes)
    }
}

/// A range of guest memory below 4 GiB that the VMM prepares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Guest physical address; page aligned.
    pub gpa: u32,
    /// Bytes; whole pages.
    pub memory_len: u32,
    /// Purpose.
    pub kind: SectionKind,
}

impl Section {
    fn end(&self) -> u64 {
        u64::from(self.gpa) + u64::from(self.memory_len)
    }
}

/// An OVMF image with SEV metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SevFirmware<'a> {
    pub(super) image: &'a [u8],
    pub(super) sections: Vec<Section>,
    pub(super) hashes_table_gpa: Option<u32>,
    pub(super) reset_eip: Option<u32>,
}

impl<'a> SevFirmware<'a> {
    /// Reads the metadata of `image`: the whole file, untrusted.
    ///
    /// # Errors
    /// [`SevFirmwareError`]: not a firmware for SEV-SNP, or a crafted one.
    pub fn parse(image: &'a [u8]) -> Result<Self, SevFirmwareError> {
        if image.len() > MAX_FIRMWARE_LEN {
            return Err(SevFirmwareError::TooLarge { len: image.len() });
        }
        if image.is_empty() || !image.len().is_multiple_of(PAGE as usize) {
            return Err(SevFirmwareError::NotPages { len: image.len() });
        }
        let entries = guid_table::entries(image)?;
        let distance = item(&entries, METADATA_GUID, "SEV metadata")?.ok_or(SevFirmwareError::NoMetadata)?;
        let sections = parse_metadata(image, usize::try_from(distance).unwrap_or(usize::MAX))?;
        let hashes_table_gpa = item(&entries, HASHES_TABLE_GUID, "the table of hashes")?.filter(|gpa| *gpa != 0);
        check_sections(&sections, hashes_table_gpa)?;
        Ok(Self { image, sections, hashes_table_gpa, reset_eip: item(&entries, RESET_BLOCK_GUID, "the reset vector")? })
    }

    /// The sections in file order, which is the order they are measured in.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where the VMM puts the hashes of a directly booted kernel.
    #[must_use]
    pub fn hashes_table_gpa(&self) -> Option<u32> {
        self.hashes_table_gpa
    }

    /// Where vCPUs other than the first start.
    #[must_use]
    pub fn reset_eip(&self) -> Option<u32> {
        self.reset_eip
    }
}

/// First four bytes of the only entry with `guid`.
fn item(entries: &[Entry<'_>], guid: [u8; 16], name: &'static str) -> Result<Option<u32>, SevFirmwareError> {
    let mut found = entries.iter().filter(|entry| entry.guid == guid);
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(entry), None) => reader::u32(entry.data, 0).map(Some).ok_or(SevFirmwareError::BadItem { name }),
        (Some(_), Some(_)) => Err(SevFirmwareError::BadItem { name }),
    }
}

fn parse_metadata(image: &[u8], distance: usize) -> Result<Vec<Section>, SevFirmwareError> {
    let bad = |what| SevFirmwareError::BadMetadata { distance, what };
    let at = image.len().checked_sub(distance).ok_or_else(|| bad("outside the image"))?;
    let header = reader::slice(image, at, HEADER_LEN).ok_or_else(|| bad("cut off"))?;
    if reader::bytes(header, 0) != Some(*b"ASEV") {
        return Err(bad("signature is not ASEV"));
    }
    if reader::u32(header, 8) != Some(1) {
        return Err(bad("version is not 1"));
    }
    let count = reader::index32(header, 12).ok_or_else(|| bad("cut off"))?;
    if count == 0 || count > MAX_SECTIONS {
        return Err(bad("section count is zero or above 64"));
    }
    let list_len = count * SECTION_LEN;
    if reader::index32(header, 4) != Some(HEADER_LEN + list_len) {
        return Err(bad("length does not match the section count"));
    }
    let list = reader::slice(image, at + HEADER_LEN, list_len).ok_or_else(|| bad("section list is cut off"))?;
    list.chunks_exact(SECTION_LEN).enumerate().map(|(index, entry)| parse_section(index, entry)).collect()
}

fn parse_section(index: usize, entry: &[u8]) -> Result<Section, SevFirmwareError> {
    let field = |offset| reader::u32(entry, offset).ok_or(SevFirmwareError::BadSection { index, what: "cut off" });
    let (gpa, memory_len, number) = (field(0)?, field(4)?, field(8)?);
    let kind = SectionKind::from_number(number).ok_or(SevFirmwareError::UnknownSection { index, kind: number })?;
    Ok(Section { gpa, memory_len, kind })
}

/// The rules that any list of sections must keep, from a firmware or from a document.
pub(super) fn check_sections(sections: &[Section], hashes_table_gpa: Option<u32>) -> Result<(), SevFirmwareError> {
    let mut total = 0_u64;
    for (index, section) in sections.iter().enumerate() {
        let bad = |what| Err(SevFirmwareError::BadSection { index, what });
        let earlier = sections.get(..index).unwrap_or_default();
        if !section.gpa.is_multiple_of(PAGE) || !section.memory_len.is_multiple_of(PAGE) {
            return bad("address or length is not page aligned");
        }
        if section.memory_len == 0 || section.end() > 1 << 32 {
            return bad("memory range is empty or reaches beyond 4 GiB");
        }
        if section.kind.is_one_page() && section.memory_len != PAGE {
            return bad("is not one page");
        }
        if section.kind.is_one_page() && earlier.iter().any(|other| other.kind == section.kind) {
            return bad("is the second of a kind that stands alone");
        }
        if earlier.iter().any(|other| u64::from(section.gpa) < other.end() && u64::from(other.gpa) < section.end()) {
            return bad("overlaps an earlier section");
        }
        total += u64::from(section.memory_len);
        if total > MAX_SECTION_MEMORY {
            return bad("sections describe more than 256 MiB");
        }
    }
    let page = sections.iter().find(|section| section.kind == SectionKind::KernelHashes);
    match (page, hashes_table_gpa) {
        (Some(page), Some(gpa)) if !fits(page, gpa) => Err(SevFirmwareError::HashesTableOutside { gpa }),
        _ => Ok(()),
    }
}

fn fits(page: &Section, gpa: u32) -> bool {
    let table_len = u64::try_from(super::kernel_hashes::PADDED_TABLE_LEN).unwrap_or(u64::MAX);
    gpa >= page.gpa && u64::from(gpa) + table_len <= page.end()
}
