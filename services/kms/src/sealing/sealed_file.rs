//! The form of one sealed file. Source: SPEC.md §2.

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload, generic_array::GenericArray},
};
use dstack_key_hierarchy::Secret;
use hkdf::Hkdf;
use rand_core::{OsRng, RngCore as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Kind;

const MAGIC: &[u8; 8] = b"DSTKSEAL";
const VERSION: u8 = 1;
const SALT: &[u8] = b"dstack-sealed-file-v1";
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
/// Magic, version, kind, key id, nonce.
const HEADER_BYTES: usize = 8 + 1 + 1 + KEY_ID_BYTES + NONCE_BYTES;

/// Whether bytes claim to be a sealed file.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Why a file does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    /// Plaintext where a sealed file must be.
    #[error("it is not sealed")]
    NotSealed,
    /// Sealed, and no platform key is configured.
    #[error("it is sealed, and no sealing provider is configured")]
    NoKey,
    /// A later version.
    #[error("it has version {0} of the sealed form")]
    Version(u8),
    /// Sealed by another platform, system or provider.
    #[error("it was sealed on another machine or by another system")]
    OtherKey,
    /// Changed, cut, or renamed.
    #[error("it was changed since it was sealed")]
    Damaged,
}

/// Opens and seals the secret files of one directory.
pub(crate) struct Vault(Option<Sealer>);

struct Sealer {
    kind: Kind,
    key_id: [u8; KEY_ID_BYTES],
    hkdf: Hkdf<Sha256>,
}

impl Vault {
    /// Files lie as they are.
    pub(crate) fn plain() -> Self {
        Self(None)
    }

    /// Files are sealed under a platform's key.
    pub(crate) fn under(kind: Kind, key: &Secret<32>) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), key.expose());
        let mut key_id = [0; KEY_ID_BYTES];
        expand(&hkdf, &[b"id", &[kind as u8]], &mut key_id);
        Self(Some(Sealer { kind, key_id, hkdf }))
    }

    /// What is to be written for the file `name`.
    pub(crate) fn seal(&self, name: &str, content: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let Some(sealer) = &self.0 else { return Ok(Zeroizing::new(content.to_vec())) };
        let mut nonce = [0; NONCE_BYTES];
        OsRng.fill_bytes(&mut nonce);
        let header = sealer.header(&nonce);
        let ciphertext =
            sealer.cipher(name).encrypt(GenericArray::from_slice(&nonce), Payload { msg: content, aad: &bound(&header, name) });
        let ciphertext = ciphertext.map_err(|_| OpenError::Damaged)?;
        Ok(Zeroizing::new([header.as_slice(), &ciphertext].concat()))
    }

    /// The content of the file `name` as it was read.
    pub(crate) fn open(&self, name: &str, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let Some(sealer) = &self.0 else {
            return if is_sealed(bytes) { Err(OpenError::NoKey) } else { Ok(Zeroizing::new(bytes.to_vec())) };
        };
        if !is_sealed(bytes) {
            return Err(OpenError::NotSealed);
        }
        let (header, ciphertext) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(OpenError::Damaged)?;
        let (_, nonce) = header.split_last_chunk::<NONCE_BYTES>().ok_or(OpenError::Damaged)?;
        match header.get(MAGIC.len()) {
            Some(&VERSION) => {}
            other => return Err(OpenError::Version(other.copied().unwrap_or(0))),
        }
        if *header != sealer.header(nonce) {
            return Err(OpenError::OtherKey);
        }
        let payload = Payload { msg: ciphertext, aad: &bound(header, name) };
        sealer.cipher(name).decrypt(GenericArray::from_slice(nonce), payload).map(Zeroizing::new).map_err(|_| OpenError::Damaged)
    }
}

impl Sealer {
    fn header(&self, nonce: &[u8; NONCE_BYTES]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let fixed = [VERSION, self.kind as u8];
        let parts = MAGIC.iter().chain(&fixed).chain(&self.key_id).chain(nonce);
        for (to, from) in header.iter_mut().zip(parts) {
            *to = *from;
        }
        header
    }

    fn cipher(&self, name: &str) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; 32]);
        expand(&self.hkdf, &[b"file", name.as_bytes()], key.as_mut());
        Aes256Gcm::new(GenericArray::from_slice(key.as_ref()))
    }
}

/// The associated data: a file cannot take the place of another.
fn bound(header: &[u8], name: &str) -> Vec<u8> {
    [header, name.as_bytes()].concat()
}

fn expand(hkdf: &Hkdf<Sha256>, info: &[&[u8]], okm: &mut [u8]) {
    let expanded = hkdf.expand_multi_info(info, okm);
    assert!(expanded.is_ok(), "32 bytes are within HKDF's limit");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn vault(byte: u8) -> Vault {
        Vault::under(Kind::LocalKeyProvider, &Secret::new([byte; 32]))
    }

    #[test]
    fn opens_what_it_sealed_and_shows_nothing_of_it() {
        let sealed = vault(1).seal("root.key", b"a secret of some length").unwrap();

        assert_eq!(vault(1).open("root.key", &sealed).unwrap().as_slice(), b"a secret of some length");
        assert!(!sealed.windows(8).any(|window| window == b"a secret"));
        assert_ne!(vault(1).seal("root.key", b"x").unwrap(), vault(1).seal("root.key", b"x").unwrap(), "the nonce is fresh");
    }

    #[test]
    fn every_byte_counts() {
        let sealed = vault(1).seal("root.key", b"secret").unwrap();
        for index in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[index] ^= 1;

            assert!(vault(1).open("root.key", &changed).is_err(), "byte {index}");
        }
        for length in 0..sealed.len() {
            assert!(vault(1).open("root.key", &sealed[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn says_why_a_file_does_not_open() {
        let sealed = vault(1).seal("root.key", b"secret").unwrap();
        let mut later = sealed.to_vec();
        later[8] = 2;

        assert_eq!(vault(2).open("root.key", &sealed).unwrap_err(), OpenError::OtherKey);
        assert_eq!(vault(1).open("other.key", &sealed).unwrap_err(), OpenError::Damaged);
        assert_eq!(vault(1).open("root.key", b"plain").unwrap_err(), OpenError::NotSealed);
        assert_eq!(vault(1).open("root.key", &later).unwrap_err(), OpenError::Version(2));
        assert_eq!(Vault::plain().open("root.key", &sealed).unwrap_err(), OpenError::NoKey);
        assert_eq!(Vault::plain().open("root.key", b"plain").unwrap().as_slice(), b"plain");
    }
}
