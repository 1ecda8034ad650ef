//! SHA-384. Portable code by default; with the feature `aws-lc` the assembly that the programs link anyway for TLS, which is faster.

use crate::Digest384;

/// Zeros to hash where a file is shorter than its memory.
pub(crate) const ZEROS: [u8; 256] = [0; 256];

/// A running SHA-384.
pub struct Sha384(Inner);

#[cfg(feature = "aws-lc")]
type Inner = aws_lc_rs::digest::Context;
#[cfg(not(feature = "aws-lc"))]
type Inner = sha2::Sha384;

impl Sha384 {
    /// The hash of nothing yet.
    #[must_use]
    #[cfg(feature = "aws-lc")]
    pub fn new() -> Self {
        Self(Inner::new(&aws_lc_rs::digest::SHA384))
    }

    /// The hash of nothing yet.
    #[must_use]
    #[cfg(not(feature = "aws-lc"))]
    pub fn new() -> Self {
        Self(sha2::Digest::new())
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        #[cfg(feature = "aws-lc")]
        self.0.update(data);
        #[cfg(not(feature = "aws-lc"))]
        sha2::Digest::update(&mut self.0, data);
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(self) -> Digest384 {
        #[cfg(feature = "aws-lc")]
        {
            let mut digest = [0; 48];
            let finished = self.0.finish();
            // Both sides have 48 bytes.
            digest.iter_mut().zip(finished.as_ref()).for_each(|(to, from)| *to = *from);
            digest
        }
        #[cfg(not(feature = "aws-lc"))]
        sha2::Digest::finalize(self.0).into()
    }
}

impl Default for Sha384 {
    fn default() -> Self {
        Self::new()
    }
}

/// SHA-384 of `data`.
#[must_use]
pub fn sha384(data: &[u8]) -> Digest384 {
    let mut hash = Sha384::new();
    hash.update(data);
    hash.finish()
}
