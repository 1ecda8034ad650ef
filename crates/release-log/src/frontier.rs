//! The right edge of a tree: all it takes to append, and to prove what is appended, without the rest.

use std::collections::BTreeMap;

use tlog_tiles::{
    Hash, HashReader, prove_record, record_hash, stored_hash_count, stored_hashes_for_record_hash, sub_tree_index, tree_hash,
};

use crate::checkpoint::{MAX_TREE_SIZE, TreeHead};

/// Hashes of the complete subtrees of a tree, largest first: at most one per bit of its size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frontier {
    size: u64,
    /// By the index of tlog-tiles' stored hashes.
    hashes: BTreeMap<u64, Hash>,
}

impl HashReader for Frontier {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        indexes.iter().map(|index| self.hashes.get(index).copied().ok_or(tlog_tiles::Error::IndexesNotInTree)).collect()
    }
}

/// A batch that was appended: the frontier of before and every hash that is new.
#[derive(Debug)]
pub struct Appended {
    known: Frontier,
    first_new: u64,
    /// New stored hashes, in order.
    pub hashes: Vec<Hash>,
}

impl HashReader for Appended {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let read = |index: &u64| match index.checked_sub(self.first_new) {
            Some(offset) => usize::try_from(offset).ok().and_then(|offset| self.hashes.get(offset)).copied(),
            None => self.known.hashes.get(index).copied(),
        };
        indexes.iter().map(|index| read(index).ok_or(tlog_tiles::Error::IndexesNotInTree)).collect()
    }
}

impl Appended {
    /// The path of entry `index`, one of the batch, in the tree of size `size` after it; none for another entry.
    #[must_use]
    pub fn prove(&self, size: u64, index: u64) -> Option<Vec<Hash>> {
        prove_record(size, index, self).ok()
    }
}

impl Frontier {
    /// The frontier of a tree of `size` from the hashes of its complete subtrees, largest first; none if their number is another.
    #[must_use]
    pub fn from_hashes(size: u64, hashes: &[Hash]) -> Option<Self> {
        if size > MAX_TREE_SIZE {
            return None;
        }
        let indexes = sub_tree_index(0, size, Vec::new());
        (indexes.len() == hashes.len()).then(|| Self { size, hashes: indexes.into_iter().zip(hashes.iter().copied()).collect() })
    }

    /// The hashes that [`Self::from_hashes`] takes.
    #[must_use]
    pub fn hashes(&self) -> Vec<Hash> {
        sub_tree_index(0, self.size, Vec::new()).iter().filter_map(|index| self.hashes.get(index).copied()).collect()
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size and root.
    #[must_use]
    pub fn head(&self) -> TreeHead {
        // The hashes of complete subtrees are there by construction.
        TreeHead { size: self.size, root: tree_hash(self.size, self).unwrap_or_default() }
    }

    /// Appends entries.
    ///
    /// Panics if the tree would have more than [`MAX_TREE_SIZE`] entries, which none has.
    pub fn append<'a>(&mut self, entries: impl IntoIterator<Item = &'a [u8]>) -> Appended {
        let mut appended = Appended { known: self.clone(), first_new: stored_hash_count(self.size), hashes: Vec::new() };
        let mut size = self.size;
        for entry in entries {
            assert!(size < MAX_TREE_SIZE, "a tree of 2^48 entries");
            let new = stored_hashes_for_record_hash(size, record_hash(entry), &appended);
            appended.hashes.extend(new.unwrap_or_default());
            size += 1;
        }
        let indexes = sub_tree_index(0, size, Vec::new());
        let kept = appended.read_hashes(&indexes).unwrap_or_default();
        *self = Self { size, hashes: indexes.into_iter().zip(kept).collect() };
        appended
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use tlog_tiles::check_record;

    use super::*;

    fn entry(number: u64) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    /// All stored hashes of a tree, by the crate alone.
    #[derive(Default)]
    struct Whole(Vec<Hash>);

    impl HashReader for Whole {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
            Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
        }
    }

    #[test]
    fn batches_of_any_size_make_the_same_tree_and_prove_each_entry() {
        let mut whole = Whole::default();
        let (mut frontier, mut size) = (Frontier::default(), 0);
        for batch in [1, 1, 2, 3, 5, 8, 13, 1, 64, 100, 257] {
            let entries: Vec<_> = (size..size + batch).map(entry).collect();
            for (offset, bytes) in entries.iter().enumerate() {
                let new = stored_hashes_for_record_hash(size + u64::try_from(offset).unwrap(), record_hash(bytes), &whole).unwrap();
                whole.0.extend(new);
            }

            let appended = frontier.append(entries.iter().map(Vec::as_slice));

            size += batch;
            let head = frontier.head();
            assert_eq!((head.size, head.root), (size, tree_hash(size, &whole).unwrap()));
            assert_eq!(appended.hashes, whole.0[whole.0.len() - appended.hashes.len()..]);
            for index in size - batch..size {
                let path = appended.prove(size, index).unwrap();
                check_record(&path, size, head.root, index, record_hash(&entry(index))).unwrap();
            }
            assert_eq!(Frontier::from_hashes(size, &frontier.hashes()).unwrap(), frontier);
        }
    }

    #[test]
    fn a_frontier_of_the_wrong_length_is_none() {
        let mut frontier = Frontier::default();
        frontier.append([b"a".as_slice(), b"b", b"c"]);
        let hashes = frontier.hashes();

        assert_eq!(hashes.len(), 2);
        assert!(Frontier::from_hashes(3, &hashes[1..]).is_none());
        assert!(Frontier::from_hashes(u64::MAX, &hashes).is_none());
    }
}
