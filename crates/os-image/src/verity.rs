//! dm-verity hash trees: made and checked here with the parameters that all our images share.
//!
//! Shape: SHA-256, data and hash blocks of 4096 bytes, hash type 1, a salt of 32 zero bytes, a zero UUID. The
//! superblock is at the end of the data; the tree follows, root level first. One root has one encoding.
//! Source: Linux `Documentation/admin-guide/device-mapper/verity.rst`, cryptsetup `lib/verity`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use dstack_manifest::Digest32;
use sha2::{Digest as _, Sha256};

/// Size of a data block and of a hash block.
pub const BLOCK_BYTES: usize = 4096;
const DIGEST_BYTES: usize = 32;
const SALT: [u8; 32] = [0; 32];
const READ_BLOCKS: usize = 256;
/// Larger file systems than this are refused: 64 GiB, a tree of 4 GiB is not for memory.
const MAX_DATA_BYTES: u64 = 64 << 30;

/// Why a tree cannot be made, or does not match.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerityError {
    /// Reading or writing.
    #[error("access the image")]
    Io(#[from] io::Error),
    /// The data is empty, not whole blocks, or too large.
    #[error("a data area of {bytes} bytes cannot be hashed: it must be whole blocks of 4096 bytes, at least one and at most 64 GiB")]
    DataSize {
        /// Its size.
        bytes: u64,
    },
    /// The data has another root than expected.
    #[error("its dm-verity root is {actual}, expected {expected}")]
    OtherRoot {
        /// Computed.
        actual: Digest32,
        /// Asked for.
        expected: Digest32,
    },
    /// The data is right, the superblock or the stored tree is not.
    #[error("its stored hash tree differs from the tree of its data")]
    OtherTree,
}

/// The hash tree of some data.
#[derive(Debug)]
pub struct Tree {
    root: Digest32,
    bytes: Vec<u8>,
}

impl Tree {
    /// Hashes `data_bytes` bytes from the start of `data`.
    ///
    /// # Errors
    /// [`VerityError::DataSize`], [`VerityError::Io`].
    pub fn compute(data: &mut (impl Read + Seek), data_bytes: u64) -> Result<Self, VerityError> {
        if data_bytes == 0 || data_bytes > MAX_DATA_BYTES || !data_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(VerityError::DataSize { bytes: data_bytes });
        }
        data.seek(SeekFrom::Start(0))?;
        let mut levels = vec![hash_data(data, data_bytes)?];
        while levels.last().is_some_and(|level| level.len() > BLOCK_BYTES) {
            let next = levels.last().map(|level| hash_level(level)).unwrap_or_default();
            levels.push(next);
        }
        let mut root = levels.last().map(|level| hash_block(level)).unwrap_or_default();
        if data_bytes == BLOCK_BYTES as u64 {
            // A single data block has no tree; its own hash is the root.
            if let Some(digest) = levels.pop().as_deref().and_then(<[u8]>::first_chunk) {
                root = *digest;
            }
        }
        let mut bytes = superblock(data_bytes / BLOCK_BYTES as u64);
        bytes.resize(BLOCK_BYTES, 0);
        for level in levels.iter().rev() {
            bytes.extend_from_slice(level);
        }
        Ok(Self { root: Digest32::new(root), bytes })
    }

    /// The root hash.
    #[must_use]
    pub fn root(&self) -> Digest32 {
        self.root
    }

    /// Superblock and tree, to be written right after the data.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Computes the tree of the first `data_bytes` of `image` and writes it behind them. Returns the root hash.
///
/// # Errors
/// As [`Tree::compute`].
pub fn append(image: &mut (impl Read + Write + Seek), data_bytes: u64) -> Result<Digest32, VerityError> {
    let tree = Tree::compute(image, data_bytes)?;
    image.seek(SeekFrom::Start(data_bytes))?;
    image.write_all(tree.bytes())?;
    Ok(tree.root())
}

/// Checks that the first `data_bytes` of `image` have the root `expected` and are followed by their superblock and tree.
///
/// # Errors
/// [`VerityError::OtherRoot`], [`VerityError::OtherTree`], or as [`Tree::compute`].
pub fn verify(image: &mut (impl Read + Seek), data_bytes: u64, expected: &Digest32) -> Result<(), VerityError> {
    let tree = match Tree::compute(image, data_bytes) {
        // Shorter than the command line says: not the image that was built.
        Err(VerityError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(VerityError::OtherTree),
        tree => tree?,
    };
    if tree.root != *expected {
        return Err(VerityError::OtherRoot { actual: tree.root, expected: *expected });
    }
    image.seek(SeekFrom::Start(data_bytes))?;
    let mut stored = vec![0; tree.bytes.len()];
    match image.read_exact(&mut stored) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(VerityError::OtherTree),
        read => read?,
    }
    if stored == tree.bytes { Ok(()) } else { Err(VerityError::OtherTree) }
}

fn hash_data(data: &mut impl Read, data_bytes: u64) -> io::Result<Vec<u8>> {
    let mut level = Vec::new();
    let mut buffer = vec![0; READ_BLOCKS * BLOCK_BYTES];
    let mut left = data_bytes;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (chunk, _) = buffer.split_at_mut(wanted);
        data.read_exact(chunk)?;
        left -= wanted as u64;
        for block in chunk.chunks(BLOCK_BYTES) {
            level.extend_from_slice(&hash_block(block));
        }
    }
    pad(&mut level);
    Ok(level)
}

fn hash_level(below: &[u8]) -> Vec<u8> {
    let mut level: Vec<u8> = Vec::with_capacity(below.len() / BLOCK_BYTES * DIGEST_BYTES);
    for block in below.chunks(BLOCK_BYTES) {
        level.extend_from_slice(&hash_block(block));
    }
    pad(&mut level);
    level
}

fn pad(level: &mut Vec<u8>) {
    level.resize(level.len().next_multiple_of(BLOCK_BYTES), 0);
}

fn hash_block(block: &[u8]) -> [u8; DIGEST_BYTES] {
    Sha256::new().chain_update(SALT).chain_update(block).finalize().into()
}

/// `struct verity_sb` of cryptsetup, 512 bytes.
fn superblock(data_blocks: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    block.extend_from_slice(b"verity\0\0");
    block.extend_from_slice(&1_u32.to_le_bytes()); // version
    block.extend_from_slice(&1_u32.to_le_bytes()); // hash type: salt first
    block.extend_from_slice(&[0; 16]); // UUID
    block.extend_from_slice(b"sha256");
    block.resize(8 + 4 + 4 + 16 + 32, 0); // algorithm name
    block.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    block.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    block.extend_from_slice(&data_blocks.to_le_bytes());
    block.extend_from_slice(&(SALT.len() as u16).to_le_bytes());
    block.extend_from_slice(&[0; 6]);
    block.extend_from_slice(&SALT);
    block.resize(512, 0);
    block
}
