//! Fixed-size secret bytes.

use std::fmt;

use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

/// `N` secret bytes: erased on drop, compared in constant time, never printed.
///
/// There is no `Clone` and no `Serialize`; to hand the bytes on, say [`Secret::expose`].
pub struct Secret<const N: usize>(Box<[u8; N]>);

/// Bytes of a length the secret does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret of {expected} bytes is needed, got {got}")]
pub struct SecretLengthError {
    /// Length it must have.
    pub expected: usize,
    /// Length that was given.
    pub got: usize,
}

impl<const N: usize> Secret<N> {
    /// Takes over bytes; the argument's own copy is erased.
    #[must_use]
    pub fn new(mut bytes: [u8; N]) -> Self {
        let secret = Self(Box::new(bytes));
        bytes.zeroize();
        secret
    }

    /// Copies from a slice.
    ///
    /// Errors: a slice of another length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, SecretLengthError> {
        let mut secret = Self(Box::new([0; N]));
        if bytes.len() != N {
            return Err(SecretLengthError { expected: N, got: bytes.len() });
        }
        secret.0.copy_from_slice(bytes);
        Ok(secret)
    }

    /// Fresh random bytes.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self::fill_with(|bytes| rng.fill_bytes(bytes))
    }

    /// Lets `fill` write the bytes in place.
    pub(crate) fn fill_with(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self(Box::new([0; N]));
        fill(&mut secret.0);
        secret
    }

    /// The bytes. Whoever calls this answers for the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// The bytes as lower-case hex, erased on drop.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_slice()))
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_ref()).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content() {
        assert_eq!(format!("{:?}", Secret::new([0x41; 4])), "Secret<4>(..)");
    }

    #[test]
    fn equality_sees_each_byte() {
        let secret = Secret::new([7; 32]);

        assert_eq!(secret, Secret::from_slice(&[7; 32]).unwrap());
        for index in 0..32 {
            let mut other = [7; 32];
            other[index] ^= 1;
            assert_ne!(secret, Secret::new(other), "byte {index}");
        }
    }

    #[test]
    fn refuses_another_length() {
        assert_eq!(Secret::<32>::from_slice(&[0; 31]), Err(SecretLengthError { expected: 32, got: 31 }));
    }
}
