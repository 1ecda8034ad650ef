//! The hand-off block list (TD HOB): the memory map QEMU gives to the firmware, and its compact witness.
//!
//! The list depends on the firmware's sections and on the VM's memory only. A [`TdHobWitness`] keeps the sections that
//! matter in a few bytes, so that the list for any memory size follows without the firmware.

#![deny(clippy::indexing_slicing)]

use crate::shape::memory_below_4g;
use crate::tdvf::{PAGE_SIZE, SectionKind, Tdvf};

const MAX_RANGES: usize = 64;
/// Addresses up to 2^52 are encodable.
const MAX_PAGE: u64 = 1 << 40;
const RESOURCE_SYSTEM_MEMORY: u32 = 0;
const RESOURCE_UNACCEPTED_MEMORY: u32 = 7;
/// Present, initialized, tested.
const RESOURCE_ATTRIBUTES: u32 = 7;
const FOUR_GIB: u64 = 1 << 32;
/// Length of the end-of-list block, which is not measured but counted in the hand-off table.
const END_BLOCK_LEN: u64 = 8;

/// Why there is no TD HOB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TdHobError {
    /// The firmware has no `TD_HOB` section, or several.
    #[error("firmware does not have exactly one TD HOB section")]
    NoHobSection,
    /// Accepted ranges overlap, are empty, not page aligned, or lie above the memory below 4 GiB.
    #[error("accepted memory {start:#x} + {len:#x} is empty, overlapping, unaligned or not below {limit:#x}")]
    BadRange {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// End of the usable memory.
        limit: u64,
    },
    /// The witness is not the one encoding of a valid map.
    #[error("TD HOB witness is not valid at byte {offset}: {what}")]
    BadWitness {
        /// Where reading stopped.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRange {
    start: u64,
    count: u64,
}

/// Which memory the VMM has accepted for the firmware before it starts, in pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdHobWitness {
    hob_page: u64,
    /// Sorted, not overlapping, not empty.
    ranges: Vec<PageRange>,
}

impl TdHobWitness {
    /// The witness of a firmware: its `TD_HOB` and `TEMP_MEM` sections.
    ///
    /// # Errors
    /// [`TdHobError::NoHobSection`]; ranges cannot overlap once parsed.
    pub fn from_tdvf(tdvf: &Tdvf<'_>) -> Result<Self, TdHobError> {
        let hob = tdvf.only(SectionKind::TdHob).ok_or(TdHobError::NoHobSection)?;
        let mut ranges: Vec<PageRange> = tdvf
            .sections()
            .iter()
            .filter(|section| matches!(section.kind, SectionKind::TdHob | SectionKind::TemporaryMemory))
            .map(|section| PageRange { start: section.gpa / PAGE_SIZE, count: section.memory_len / PAGE_SIZE })
            .collect();
        ranges.sort_by_key(|range| range.start);
        Ok(Self { hob_page: hob.gpa / PAGE_SIZE, ranges })
    }

    /// Guest physical address of the list.
    #[must_use]
    pub fn hob_address(&self) -> u64 {
        self.hob_page * PAGE_SIZE
    }

    /// Compact form: LEB128 page numbers `base, hob − base, count, (start − base, pages)*`, where `base` is the lowest range.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let base = self.ranges.first().map_or(self.hob_page, |range| range.start);
        let mut out = Vec::new();
        push_leb128(&mut out, base);
        push_leb128(&mut out, self.hob_page - base);
        push_leb128(&mut out, u64::try_from(self.ranges.len()).unwrap_or(u64::MAX));
        for range in &self.ranges {
            push_leb128(&mut out, range.start - base);
            push_leb128(&mut out, range.count);
        }
        out
    }

    /// Reads the compact form; only the one encoding that [`Self::encode`] writes is accepted.
    ///
    /// # Errors
    /// [`TdHobError::BadWitness`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TdHobError> {
        let mut input = Leb128 { bytes, offset: 0 };
        let base = input.next()?;
        let hob_page = base + input.next()?;
        let count = input.next()?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_RANGES).contains(count))
            .ok_or_else(|| input.bad("range count is zero or above 64"))?;
        let mut ranges: Vec<PageRange> = Vec::with_capacity(count);
        for _ in 0..count {
            let range = PageRange { start: base + input.next()?, count: input.next()? };
            let floor = ranges.last().map_or(base, |last| last.start + last.count);
            if range.start < floor || range.count == 0 {
                return Err(input.bad("range is empty, overlapping or out of order"));
            }
            ranges.push(range);
        }
        if input.offset != bytes.len() {
            return Err(input.bad("trailing bytes"));
        }
        if ranges.first().is_none_or(|first| first.start != base) || !ranges.iter().any(|range| range.start == hob_page) {
            return Err(input.bad("base or list address is not the start of a range"));
        }
        Ok(Self { hob_page, ranges })
    }

    /// The measured bytes of the list for a VM of `memory_size` bytes: hand-off table and resources, without the end block.
    ///
    /// # Errors
    /// [`TdHobError::BadRange`] when an accepted range is not inside the memory below 4 GiB.
    pub fn td_hob(&self, memory_size: u64) -> Result<Vec<u8>, TdHobError> {
        let below_4g = memory_below_4g(memory_size);
        let mut resources = Vec::new();
        let mut next = 0;
        for range in &self.ranges {
            let (start, len) = (range.start * PAGE_SIZE, range.count * PAGE_SIZE);
            if start < next || start + len > below_4g {
                return Err(TdHobError::BadRange { start, len, limit: below_4g });
            }
            push_gap(&mut resources, next, start);
            push_resource(&mut resources, RESOURCE_SYSTEM_MEMORY, start, len);
            next = start + len;
        }
        push_gap(&mut resources, next, below_4g);
        let above_4g = memory_size - below_4g;
        push_gap(&mut resources, FOUR_GIB, FOUR_GIB.saturating_add(above_4g));

        let mut list = Vec::with_capacity(56 + resources.len());
        push_header(&mut list, 1, 56);
        list.extend_from_slice(&9_u32.to_le_bytes()); // version of the hand-off table
        list.extend_from_slice(&[0; 4 + 4 * 8]); // boot mode, memory top and bottom, free top and bottom
        let end = self.hob_address() + 56 + u64::try_from(resources.len()).unwrap_or(u64::MAX) + END_BLOCK_LEN;
        list.extend_from_slice(&end.to_le_bytes());
        list.extend_from_slice(&resources);
        Ok(list)
    }
}

fn push_gap(out: &mut Vec<u8>, start: u64, end: u64) {
    if start < end {
        push_resource(out, RESOURCE_UNACCEPTED_MEMORY, start, end - start);
    }
}

fn push_resource(out: &mut Vec<u8>, kind: u32, start: u64, len: u64) {
    push_header(out, 3, 48);
    out.extend_from_slice(&[0; 16]); // owner
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&RESOURCE_ATTRIBUTES.to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
}

fn push_header(out: &mut Vec<u8>, kind: u16, len: u16) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

fn push_leb128(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Leb128<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Leb128<'_> {
    fn bad(&self, what: &'static str) -> TdHobError {
        TdHobError::BadWitness { offset: self.offset, what }
    }

    /// Next number, in its shortest form and below [`MAX_PAGE`], so that sums of three cannot overflow.
    fn next(&mut self) -> Result<u64, TdHobError> {
        let mut value = 0_u64;
        for shift in (0..42).step_by(7) {
            let byte = *self.bytes.get(self.offset).ok_or_else(|| self.bad("cut off"))?;
            self.offset += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 != 0 {
                continue;
            }
            if (byte == 0 && shift > 0) || value >= MAX_PAGE {
                return Err(self.bad("number is not in its shortest form or too large"));
            }
            return Ok(value);
        }
        Err(self.bad("number is too long"))
    }
}
