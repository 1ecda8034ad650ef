//! Hash algorithms of PCR banks.

use std::fmt;

use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

const LONGEST: usize = 64;

/// A hash algorithm that a PCR bank can have.
///
/// Source: TCG Algorithm Registry, `TPM_ALG_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// Collisions are practical: fit to replay an old bank, not to rest a verdict on.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 48 bytes; the only one of TDX registers.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// `TPM_ALG_ID`.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    /// The algorithm of a `TPM_ALG_ID`, `None` for one that is not replayed.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.id() == id)
    }

    /// Bytes of a digest.
    #[must_use]
    pub const fn digest_length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Digest of the concatenated `parts`.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> BankDigest {
        match self {
            Self::Sha1 => BankDigest::of::<Sha1>(parts),
            Self::Sha256 => BankDigest::of::<Sha256>(parts),
            Self::Sha384 => BankDigest::of::<Sha384>(parts),
            Self::Sha512 => BankDigest::of::<Sha512>(parts),
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        })
    }
}

/// A digest or a PCR's value: as many bytes as its algorithm has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BankDigest {
    length: usize,
    bytes: [u8; LONGEST],
}

impl BankDigest {
    fn of<D: sha2::Digest>(parts: &[&[u8]]) -> Self {
        let digest = parts.iter().fold(D::new(), |hasher, part| hasher.chain_update(part)).finalize();
        Self::copied(&digest)
    }

    pub(crate) fn filled(algorithm: HashAlgorithm, byte: u8) -> Self {
        Self::copied(&[byte; LONGEST][..algorithm.digest_length()])
    }

    /// `bytes`: at most [`LONGEST`]; what is beyond is left out.
    fn copied(bytes: &[u8]) -> Self {
        let mut copy = [0; LONGEST];
        copy.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self { length: bytes.len().min(LONGEST), bytes: copy }
    }

    pub(crate) fn with_last_byte(mut self, byte: u8) -> Self {
        if let Some(last) = self.length.checked_sub(1).and_then(|last| self.bytes.get_mut(last)) {
            *last = byte;
        }
        self
    }

    /// The bytes, as many as the algorithm has.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl AsRef<[u8]> for BankDigest {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for BankDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Display for BankDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}
