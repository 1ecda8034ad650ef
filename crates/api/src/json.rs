//! JSON forms that differ from serde's own: bytes are lower-case hex, input may carry `0x`.

use serde::{Deserialize, Deserializer};

fn decode<E: serde::de::Error>(text: &str) -> Result<Vec<u8>, E> {
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(E::custom)
}

/// Whether a field has its default and can be left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A `bytes` field as one hex string.
pub mod hex_bytes {
    use super::{Deserialize as _, Deserializer, decode};
    use serde::Serializer;

    /// Writes lower-case hex without prefix.
    ///
    /// Errors: the serializer's.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    /// Reads hex of either case, with or without `0x`.
    ///
    /// Errors: text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        decode(&String::deserialize(deserializer)?)
    }
}

/// A repeated `bytes` field as a list of hex strings.
pub mod hex_list {
    use super::{Deserialize as _, Deserializer, decode};
    use serde::{Serializer, ser::SerializeSeq as _};

    /// Writes each element as lower-case hex.
    ///
    /// Errors: the serializer's.
    pub fn serialize<S: Serializer>(items: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(items.len()))?;
        for item in items {
            seq.serialize_element(&hex::encode(item))?;
        }
        seq.end()
    }

    /// Reads a list of hex strings.
    ///
    /// Errors: an element that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().map(|text| decode(text)).collect()
    }
}
