//! Entries as they lie in files and travel: each with its length in two bytes before it, 256 to a bundle. Source: SPEC.md §3.

use tlog_tiles::Tile;

/// Longest entry.
pub const MAX_ENTRY_BYTES: usize = 0xffff;
/// Entries of a full bundle.
pub const BUNDLE_ENTRIES: u64 = 256;
/// Height of a tile: 256 hashes.
const TILE_HEIGHT: u8 = 8;

/// A bundle that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry bundle breaks off at byte {offset}")]
pub struct BundleError {
    /// Where.
    pub offset: usize,
}

/// `entry` with its length before it; none if it is too long.
#[must_use]
pub fn encode_record(entry: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(entry.len()).ok()?;
    Some([length.to_be_bytes().as_slice(), entry].concat())
}

/// The entries of a bundle.
///
/// Errors: it does not end with an entry.
pub fn parse_bundle(bytes: &[u8]) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let broken = BundleError { offset: bytes.len() - rest.len() };
        let (length, tail) = rest.split_first_chunk::<2>().ok_or_else(|| broken.clone())?;
        let (entry, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(broken)?;
        entries.push(entry);
        rest = tail;
    }
    Ok(entries)
}

/// Path, below the log's address, of the bundle with the entries from `256 * number` of a tree of `tree_size`; none if it would be
/// empty.
#[must_use]
pub fn entry_bundle_path(number: u64, tree_size: u64) -> Option<String> {
    let left = tree_size.checked_sub(number.checked_mul(BUNDLE_ENTRIES)?)?;
    let width = u32::try_from(left.min(BUNDLE_ENTRIES)).ok().filter(|width| *width > 0)?;
    let path = Tile::new(TILE_HEIGHT, 0, number, width, true).path();
    Some(path.replacen("tile/8/data/", "tile/entries/", 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_bundle() {
        let bundle = [encode_record(b"one").unwrap(), encode_record(b"").unwrap(), encode_record(&[7; 0xffff]).unwrap()].concat();

        assert_eq!(parse_bundle(&bundle).unwrap(), [b"one".as_slice(), b"", &[7; 0xffff]]);
        assert_eq!(encode_record(&[0; 0x1_0000]), None);
    }

    #[test]
    fn a_bundle_that_breaks_off_is_refused_with_the_place() {
        for (bytes, offset) in [(b"\x00".as_slice(), 0), (b"\x00\x02a", 0), (b"\x00\x01a\x00", 3)] {
            assert_eq!(parse_bundle(bytes), Err(BundleError { offset }));
        }
    }

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        assert_eq!(entry_bundle_path(0, 256).unwrap(), "tile/entries/000");
        assert_eq!(entry_bundle_path(1, 300).unwrap(), "tile/entries/001.p/44");
        assert_eq!(entry_bundle_path(1234, 256 * 1235).unwrap(), "tile/entries/x001/234");
        assert_eq!(entry_bundle_path(1, 256), None);
        assert_eq!(entry_bundle_path(u64::MAX, 256), None);
    }
}
