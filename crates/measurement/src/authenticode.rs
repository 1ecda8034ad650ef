//! Authenticode digest of a PE image, as UEFI firmware measures an application before it starts it.
//!
//! Source: "Windows Authenticode Portable Executable Signature Format", and the order of hashing in
//! the TCG PC Client Platform Firmware Profile for `EV_EFI_BOOT_SERVICES_APPLICATION`.

#![deny(clippy::indexing_slicing)]

use crate::hash::{Sha384, ZEROS};
use crate::{Digest384, reader};

const MAX_SECTIONS: usize = 96;
const COFF_HEADER_LEN: usize = 20;
const SECTION_HEADER_LEN: usize = 40;
const CERTIFICATE_DIRECTORY: usize = 4;
const DIRECTORY_ENTRY_LEN: usize = 8;

/// Why an image has no Authenticode digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PE image is not valid at byte {offset:#x}: {what}")]
pub struct PeError {
    /// Where the field lies.
    pub offset: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

struct Layout {
    checksum_at: usize,
    /// Directory entry of the certificate table, if the header is long enough to have one.
    certificate_entry_at: Option<usize>,
    headers_len: usize,
    certificates_len: usize,
    /// File ranges of the sections with content, by offset.
    sections: Vec<(usize, usize)>,
}

/// Authenticode SHA-384 of `image`.
///
/// `image`: the whole file, untrusted. Hashed are the headers without checksum and certificate entry, the sections by
/// file offset, and what follows them up to the certificate table, padded with zeros to 8 bytes. Each byte is hashed at most once.
///
/// # Errors
/// [`PeError`] for anything that is not a well-formed PE32 or PE32+ image.
pub fn sha384(image: &[u8]) -> Result<Digest384, PeError> {
    sha384_with_head(image, image)
}

/// Authenticode SHA-384 of an image that consists of `head` and of what `file` has behind it.
///
/// # Errors
/// Those of [`sha384`], and if the headers are not wholly in `head`.
pub(crate) fn sha384_with_head(head: &[u8], file: &[u8]) -> Result<Digest384, PeError> {
    let layout = parse(head, file.len())?;
    let mut hash = Sha384::new();
    let outside = |offset| PeError { offset, what: "range outside the image" };
    let header = |start: usize, end: usize| head.get(start..end).ok_or_else(|| outside(start));
    hash.update(header(0, layout.checksum_at)?);
    match layout.certificate_entry_at {
        Some(entry_at) => {
            hash.update(header(layout.checksum_at + 4, entry_at)?);
            hash.update(header(entry_at + DIRECTORY_ENTRY_LEN, layout.headers_len)?);
        }
        None => hash.update(header(layout.checksum_at + 4, layout.headers_len)?),
    }
    let mut content = |start: usize, end: usize| -> Result<(), PeError> {
        let (from_head, from_file) = (start.min(head.len())..end.min(head.len()), start.max(head.len())..end.max(head.len()));
        hash.update(head.get(from_head).ok_or_else(|| outside(start))?);
        hash.update(file.get(from_file).ok_or_else(|| outside(start))?);
        Ok(())
    };
    let mut hashed = layout.headers_len;
    for (offset, len) in layout.sections {
        let section_end = offset.checked_add(len).filter(|end| *end <= file.len());
        content(offset, section_end.ok_or(PeError { offset, what: "section outside the image" })?)?;
        hashed = hashed.saturating_add(len);
        if hashed > file.len() {
            return Err(PeError { offset, what: "sections are longer than the image" });
        }
    }
    let end = file.len() - layout.certificates_len;
    if hashed > end {
        return Err(PeError { offset: end, what: "certificate table overlaps the content" });
    }
    content(hashed, end)?;
    hash.update(ZEROS.get(..(8 - (end - hashed) % 8) % 8).unwrap_or_default());
    Ok(hash.finish())
}

/// `image`: at least the headers of a file of `image_len` bytes.
fn parse(image: &[u8], image_len: usize) -> Result<Layout, PeError> {
    let cut = |offset| PeError { offset, what: "cut off" };
    if reader::bytes(image, 0) != Some(*b"MZ") {
        return Err(PeError { offset: 0, what: "no MZ signature" });
    }
    let pe_at = reader::index32(image, 0x3c).ok_or_else(|| cut(0x3c))?;
    if reader::bytes(image, pe_at) != Some(*b"PE\0\0") {
        return Err(PeError { offset: pe_at, what: "no PE signature" });
    }
    let coff_at = pe_at + 4;
    let section_count = usize::from(reader::u16(image, coff_at + 2).ok_or_else(|| cut(coff_at))?);
    if section_count > MAX_SECTIONS {
        return Err(PeError { offset: coff_at + 2, what: "more than 96 sections" });
    }
    let optional_len = usize::from(reader::u16(image, coff_at + 16).ok_or_else(|| cut(coff_at))?);
    let optional_at = coff_at + COFF_HEADER_LEN;
    let directory_count_at = match reader::u16(image, optional_at) {
        Some(0x10b) => optional_at + 92,
        Some(0x20b) => optional_at + 108,
        _ => return Err(PeError { offset: optional_at, what: "optional header is neither PE32 nor PE32+" }),
    };
    let sections_at = optional_at + optional_len;
    let checksum_at = optional_at + 64;
    let headers_len = reader::index32(image, optional_at + 60).ok_or_else(|| cut(optional_at))?;
    let section_headers_end = sections_at + section_count * SECTION_HEADER_LEN;
    if headers_len < section_headers_end || headers_len > image.len() || directory_count_at + 4 > sections_at {
        return Err(PeError { offset: optional_at + 60, what: "length of the headers" });
    }
    let directory_count = reader::index32(image, directory_count_at).ok_or_else(|| cut(directory_count_at))?;
    let entry_at = directory_count_at + 4 + CERTIFICATE_DIRECTORY * DIRECTORY_ENTRY_LEN;
    let certificate_entry_at = (directory_count > CERTIFICATE_DIRECTORY).then_some(entry_at);
    let certificates_len = match certificate_entry_at {
        None => 0,
        Some(at) if at + DIRECTORY_ENTRY_LEN > sections_at => {
            return Err(PeError { offset: at, what: "certificate entry outside the header" });
        }
        Some(at) => certificates_len(image, at, image_len)?,
    };
    let sections = parse_sections(image, sections_at, section_count)?;
    Ok(Layout { checksum_at, certificate_entry_at, headers_len, certificates_len, sections })
}

/// Length of the certificate table, which must be the end of the file: otherwise signed and measured bytes would differ.
fn certificates_len(image: &[u8], entry_at: usize, image_len: usize) -> Result<usize, PeError> {
    let cut = || PeError { offset: entry_at, what: "cut off" };
    let offset = reader::index32(image, entry_at).ok_or_else(cut)?;
    let len = reader::index32(image, entry_at + 4).ok_or_else(cut)?;
    if len != 0 && offset.checked_add(len) != Some(image_len) {
        return Err(PeError { offset: entry_at, what: "certificate table is not the end of the image" });
    }
    Ok(len)
}

fn parse_sections(image: &[u8], sections_at: usize, count: usize) -> Result<Vec<(usize, usize)>, PeError> {
    let mut sections = Vec::with_capacity(count);
    for index in 0..count {
        let at = sections_at + index * SECTION_HEADER_LEN;
        let cut = || PeError { offset: at, what: "cut off" };
        let len = reader::index32(image, at + 16).ok_or_else(cut)?;
        let offset = reader::index32(image, at + 20).ok_or_else(cut)?;
        if len != 0 {
            sections.push((offset, len));
        }
    }
    sections.sort_by_key(|(offset, _)| *offset);
    Ok(sections)
}
