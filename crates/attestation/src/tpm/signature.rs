//! `TPMT_SIGNATURE`: the signature of a quote.

use dstack_event_log::HashAlgorithm;

use super::reader::{Reader, TpmFormatError};
use crate::public_key::{MessageHash, PublicKey, Signature, SignatureFault};

const RSASSA: u16 = 0x0014;
const ECDSA: u16 = 0x0018;

/// A quote's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteSignature {
    /// RSA with PKCS#1 v1.5 padding.
    Rsassa {
        /// Hash of the message.
        hash: HashAlgorithm,
        /// As long as the modulus.
        signature: Vec<u8>,
    },
    /// ECDSA. Numbers are big-endian and may lack leading zeros.
    Ecdsa {
        /// Hash of the message.
        hash: HashAlgorithm,
        /// First number.
        r: Vec<u8>,
        /// Second number.
        s: Vec<u8>,
    },
}

impl QuoteSignature {
    /// Parses the structure that a TPM returns.
    ///
    /// # Errors
    /// [`TpmFormatError`]: another scheme than RSASSA and ECDSA, or another hash than SHA-2.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmFormatError> {
        let mut reader = Reader::new("TPMT_SIGNATURE", bytes);
        let scheme = reader.u16("sigAlg")?;
        let id = reader.u16("hash")?;
        let hash = HashAlgorithm::from_id(id).filter(|hash| *hash != HashAlgorithm::Sha1);
        let hash = hash.ok_or_else(|| reader.refuse("hash", id, "SHA-256, SHA-384 or SHA-512"))?;
        let signature = match scheme {
            RSASSA => Self::Rsassa { hash, signature: reader.sized("sig")?.to_vec() },
            ECDSA => Self::Ecdsa { hash, r: reader.sized("signatureR")?.to_vec(), s: reader.sized("signatureS")?.to_vec() },
            other => return Err(reader.refuse("sigAlg", other, "RSASSA or ECDSA")),
        };
        reader.end()?;
        Ok(signature)
    }

    /// The hash of the message, which is the one of the digest over the registers too.
    #[must_use]
    pub fn hash(&self) -> HashAlgorithm {
        match self {
            Self::Rsassa { hash, .. } | Self::Ecdsa { hash, .. } => *hash,
        }
    }

    /// Name of the scheme.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Rsassa { .. } => "RSASSA",
            Self::Ecdsa { .. } => "ECDSA",
        }
    }

    pub(super) fn verify(&self, key: &PublicKey, message: &[u8]) -> Result<(), SignatureFault> {
        let hash = match self.hash() {
            HashAlgorithm::Sha256 => MessageHash::Sha256,
            HashAlgorithm::Sha384 => MessageHash::Sha384,
            HashAlgorithm::Sha512 => MessageHash::Sha512,
            HashAlgorithm::Sha1 => return Err(SignatureFault::Algorithm),
        };
        match (self, key.scalar_length()) {
            (Self::Rsassa { signature, .. }, None) => key.verify(hash, message, Signature::Der(signature)),
            (Self::Ecdsa { r, s, .. }, Some(length)) => {
                let fixed = [padded(r, length)?, padded(s, length)?].concat();
                key.verify(hash, message, Signature::Fixed(&fixed))
            }
            _ => Err(SignatureFault::Algorithm),
        }
    }
}

/// `number` with leading zeros.
fn padded(number: &[u8], length: usize) -> Result<Vec<u8>, SignatureFault> {
    let zeros = length.checked_sub(number.len()).ok_or(SignatureFault::Invalid)?;
    Ok([vec![0; zeros], number.to_vec()].concat())
}
