//! MRTD: the register the TDX module builds while the VMM adds the firmware's pages.
//!
//! Source: Intel TDX Module ABI, `TDH.MEM.PAGE.ADD` and `TDH.MR.EXTEND`: each call hashes a
//! 128-byte record, the second followed by the 256 bytes it covers.

use crate::hash::{Sha384, ZEROS};
use crate::tdvf::{PAGE_SIZE, Section, Tdvf};
use crate::{Digest384, PageAddOrder};

const RECORD_LEN: usize = 128;
const ADDRESS_AT: usize = 16;
const CHUNK_LEN: usize = 256;
const CHUNKS_PER_PAGE: usize = 16;

/// MRTD of a TD that is built from `tdvf` with pages added in `order`.
#[must_use]
pub fn mrtd(tdvf: &Tdvf<'_>, order: PageAddOrder) -> Digest384 {
    let mut hash = Sha384::new();
    for section in tdvf.sections() {
        match order {
            PageAddOrder::SinglePass => {
                for page in pages(section) {
                    add_page(&mut hash, section, &page);
                    extend_page(&mut hash, section, &page);
                }
            }
            PageAddOrder::TwoPass => {
                pages(section).for_each(|page| add_page(&mut hash, section, &page));
                pages(section).for_each(|page| extend_page(&mut hash, section, &page));
            }
        }
    }
    hash.finish()
}

struct Page<'a> {
    gpa: u64,
    /// Initial content, cut at the end of the section's data; the rest is zero.
    data: &'a [u8],
}

fn pages<'a>(section: &Section<'a>) -> impl Iterator<Item = Page<'a>> {
    const PAGE_LEN: usize = 4096;
    let mut rest = section.data;
    let (gpa, count) = (section.gpa, section.memory_len / PAGE_SIZE);
    (0..count).map(move |index| {
        let (data, tail) = rest.split_at(rest.len().min(PAGE_LEN));
        rest = tail;
        Page { gpa: gpa + index * PAGE_SIZE, data }
    })
}

fn add_page(hash: &mut Sha384, section: &Section<'_>, page: &Page<'_>) {
    if !section.page_aug {
        hash.update(&record(b"MEM.PAGE.ADD", page.gpa));
    }
}

fn extend_page(hash: &mut Sha384, section: &Section<'_>, page: &Page<'_>) {
    if !section.extend {
        return;
    }
    let mut rest = page.data;
    let mut gpa = page.gpa;
    for _ in 0..CHUNKS_PER_PAGE {
        let (data, tail) = rest.split_at(rest.len().min(CHUNK_LEN));
        rest = tail;
        hash.update(&record(b"MR.EXTEND", gpa));
        hash.update(data);
        hash.update(ZEROS.get(data.len()..).unwrap_or_default());
        gpa += 256;
    }
}

fn record(name: &[u8], gpa: u64) -> [u8; RECORD_LEN] {
    let mut record = [0_u8; RECORD_LEN];
    record[..name.len()].copy_from_slice(name);
    record[ADDRESS_AT..ADDRESS_AT + 8].copy_from_slice(&gpa.to_le_bytes());
    record
}
