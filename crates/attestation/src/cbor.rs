//! CBOR and COSE, read with bounds: one item, nothing behind it, no key twice.

use ciborium::Value;
use coset::{AsCborValue as _, CoseSign1, RegisteredLabelWithPrivate, iana};

use crate::public_key::{MessageHash, PublicKey, Signature, SignatureFault};

/// Deepest nesting that is read. Evidence needs five levels.
const MAX_DEPTH: usize = 16;
/// Most entries of a map.
const MAX_ENTRIES: usize = 64;
/// CBOR tag of COSE_Sign1.
const SIGN1_TAG: u64 = 18;

/// Why bytes are not the CBOR they should be. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CborError {
    /// Not one CBOR item.
    #[error("not CBOR of at most {MAX_DEPTH} levels: {reason}")]
    Item {
        /// What the parser met.
        reason: String,
    },
    /// Something follows the item.
    #[error("{length} bytes follow the CBOR item")]
    Trailing {
        /// How much.
        length: usize,
    },
    /// Not a map of at most 64 entries.
    #[error("not a map of at most {MAX_ENTRIES} entries")]
    Map,
    /// A key stands twice.
    #[error("key {key} stands twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// A claim that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A claim of the wrong type, length or value.
    #[error("{field} is not {expected}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Not a COSE_Sign1 structure.
    #[error("not a COSE_Sign1 structure: {reason}")]
    Sign1 {
        /// What the parser met.
        reason: String,
    },
}

/// The first item of `bytes`, and what follows it.
pub(crate) fn split(bytes: &[u8]) -> Result<(Value, &[u8]), CborError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH);
    value.map(|value| (value, rest)).map_err(|error| CborError::Item { reason: error.to_string().chars().take(120).collect() })
}

/// The item that `bytes` are.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, CborError> {
    match split(bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(CborError::Trailing { length: rest.len() }),
    }
}

/// A map whose keys are all different.
pub(crate) struct Map {
    entries: Vec<(Value, Value)>,
}

impl Map {
    pub(crate) fn new(value: Value) -> Result<Self, CborError> {
        let entries = value.into_map().ok().filter(|entries| entries.len() <= MAX_ENTRIES).ok_or(CborError::Map)?;
        for (position, (key, _)) in entries.iter().enumerate() {
            if entries.iter().take(position).any(|(earlier, _)| earlier == key) {
                return Err(CborError::Twice { key: format!("{key:?}").chars().take(40).collect() });
            }
        }
        Ok(Self { entries })
    }

    /// Takes an entry out, with what `read` makes of it. CBOR `null` is an absent entry.
    pub(crate) fn take<T>(
        &mut self,
        key: impl Into<Value>,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, CborError> {
        let key = key.into();
        let Some(position) = self.entries.iter().position(|(known, _)| *known == key) else { return Ok(None) };
        match self.entries.swap_remove(position).1 {
            Value::Null => Ok(None),
            value => read(value).map(Some).ok_or(CborError::Field { field, expected }),
        }
    }

    /// The same for an entry that must be there.
    pub(crate) fn need<T>(
        &mut self,
        key: impl Into<Value>,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, CborError> {
        self.take(key, field, expected, read)?.ok_or(CborError::Missing { field })
    }

    pub(crate) fn contains(&self, key: impl Into<Value>) -> bool {
        let key = key.into();
        self.entries.iter().any(|(known, _)| *known == key)
    }

    pub(crate) fn into_entries(self) -> Vec<(Value, Value)> {
        self.entries
    }
}

/// A byte string whose length is in `lengths`.
pub(crate) fn bytes_of(lengths: impl std::ops::RangeBounds<usize>) -> impl FnOnce(Value) -> Option<Vec<u8>> {
    move |value| value.into_bytes().ok().filter(|bytes| lengths.contains(&bytes.len()))
}

/// A number that is not negative.
pub(crate) fn unsigned(value: Value) -> Option<u64> {
    u64::try_from(value.into_integer().ok()?).ok()
}

/// Text of 1 to `longest` bytes.
pub(crate) fn text_of(longest: usize) -> impl FnOnce(Value) -> Option<String> {
    move |value| value.into_text().ok().filter(|text| (1..=longest).contains(&text.len()))
}

/// A COSE_Sign1 structure, unverified.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UnverifiedSign1 {
    hash: MessageHash,
    algorithm: &'static str,
    sign1: CoseSign1,
}

impl UnverifiedSign1 {
    /// `value`: with or without its tag. Nothing may stand in the header that the signature does not cover.
    pub(crate) fn new(value: Value) -> Result<Self, CborError> {
        let value = match value {
            Value::Tag(SIGN1_TAG, inner) => *inner,
            other => other,
        };
        let refused = |reason: &str| CborError::Sign1 { reason: reason.to_owned() };
        let sign1 = CoseSign1::from_cbor_value(value).map_err(|error| refused(&error.to_string()))?;
        if !sign1.unprotected.is_empty() {
            return Err(refused("the unprotected header is not empty"));
        }
        let header = &sign1.protected.header;
        if !header.crit.is_empty() {
            return Err(refused("a header is critical"));
        }
        let (hash, algorithm) = match header.alg {
            Some(RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256)) => (MessageHash::Sha256, "ES256"),
            Some(RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES384)) => (MessageHash::Sha384, "ES384"),
            _ => return Err(refused("the algorithm is neither ES256 nor ES384")),
        };
        if sign1.payload.is_none() {
            return Err(refused("there is no payload"));
        }
        Ok(Self { hash, algorithm, sign1 })
    }

    /// What is signed besides the header.
    pub(crate) fn payload(&self) -> &[u8] {
        self.sign1.payload.as_deref().unwrap_or_default()
    }

    /// Name of the algorithm.
    pub(crate) fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// Whether `key` signed header and payload.
    pub(crate) fn verify(&self, key: &PublicKey) -> Result<(), SignatureFault> {
        self.sign1.verify_signature(&[], |signature, message| key.verify(self.hash, message, Signature::Fixed(signature)))
    }
}
