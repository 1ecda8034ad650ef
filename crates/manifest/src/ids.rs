//! Identities and digests as types, so that one cannot be passed for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Text that is not the hex form of the identity asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected} bytes of hex, got {got} characters that are not")]
pub struct HexError {
    /// Which identity.
    pub what: &'static str,
    /// Bytes it has.
    pub expected: usize,
    /// Length of the text that was given.
    pub got: usize,
}

fn parse_fixed<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], HexError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut bytes = [0_u8; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| HexError { what, expected: N, got: text.len() })?;
    Ok(bytes)
}

macro_rules! fixed_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps raw bytes.
            #[must_use]
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = HexError;

            fn try_from(bytes: &[u8]) -> Result<Self, HexError> {
                let fixed = bytes.try_into().map_err(|_| HexError { what: $what, expected: $len, got: bytes.len() })?;
                Ok(Self(fixed))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                parse_fixed($what, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fixed_id!(
    /// Identity of an application: 20 bytes, by default the first 20 of its first compose hash.
    AppId, 20, "app id"
);
fixed_id!(
    /// SHA-256 of the bytes of `app-compose.json`, exactly as delivered.
    ComposeHash, 32, "compose hash"
);
fixed_id!(
    /// SHA-256 of an OS image's `sha256sum.txt`.
    OsImageHash, 32, "OS image hash"
);
fixed_id!(
    /// Any other SHA-256 digest, such as a dm-verity root.
    Digest32, 32, "SHA-256 digest"
);

impl ComposeHash {
    /// Hashes a document's bytes as they are.
    #[must_use]
    pub fn of(document: &[u8]) -> Self {
        Self(Sha256::digest(document).into())
    }

    /// The app id an application gets when none was chosen: the first 20 bytes.
    #[must_use]
    pub fn default_app_id(&self) -> AppId {
        let mut id = [0_u8; 20];
        id.copy_from_slice(self.0.split_at(20).0);
        AppId(id)
    }
}

impl Digest32 {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// Identity of one instance of an application: 20 bytes, or none where the app asked for no instance id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Option<[u8; 20]>);

impl InstanceId {
    /// The app runs without instance ids; all its replicas share their disk key.
    pub const NONE: Self = Self(None);

    /// `SHA-256(seed || app id)`, first 20 bytes.
    ///
    /// `seed`: 20 bytes, chosen at the instance's first boot, not secret.
    #[must_use]
    pub fn derive(seed: &[u8; 20], app_id: &AppId) -> Self {
        let digest = Sha256::new().chain_update(seed).chain_update(app_id.as_bytes()).finalize();
        let mut id = [0_u8; 20];
        id.copy_from_slice(digest.split_at(20).0);
        Self(Some(id))
    }

    /// 20 bytes, or none.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], <[u8; 20]>::as_slice)
    }
}

impl TryFrom<&[u8]> for InstanceId {
    type Error = HexError;

    fn try_from(bytes: &[u8]) -> Result<Self, HexError> {
        if bytes.is_empty() {
            return Ok(Self::NONE);
        }
        let fixed = bytes.try_into().map_err(|_| HexError { what: "instance id", expected: 20, got: bytes.len() })?;
        Ok(Self(Some(fixed)))
    }
}

impl FromStr for InstanceId {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        if text.is_empty() { Ok(Self::NONE) } else { parse_fixed("instance id", text).map(|id| Self(Some(id))) }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn default_app_id_is_the_first_twenty_bytes_of_the_compose_hash() {
        let hash: ComposeHash = "258bbd49ae0fd84652c84c4c834055b1d8bcdc443cd8e172578f320b46304505".parse().unwrap();

        assert_eq!(hash.default_app_id().to_string(), "258bbd49ae0fd84652c84c4c834055b1d8bcdc44");
    }

    #[test]
    fn accepts_a_prefix_and_either_case_but_no_other_length() {
        assert!("0xAA00000000000000000000000000000000000000".parse::<AppId>().is_ok());

        for bad in ["", "00", "zz00000000000000000000000000000000000000", "aa0000000000000000000000000000000000000000"] {
            assert!(bad.parse::<AppId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_absent_instance_id_is_empty_text() {
        assert_eq!("".parse::<InstanceId>().unwrap(), InstanceId::NONE);
        assert_eq!(InstanceId::NONE.to_string(), "");
        assert!("00".parse::<InstanceId>().is_err());
    }

    #[test]
    fn instance_id_depends_on_seed_and_app() {
        let one = InstanceId::derive(&[1; 20], &AppId::new([2; 20]));

        assert_ne!(one, InstanceId::derive(&[3; 20], &AppId::new([2; 20])));
        assert_ne!(one, InstanceId::derive(&[1; 20], &AppId::new([3; 20])));
    }
}
