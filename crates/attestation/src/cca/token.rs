//! The token: two COSE_Sign1 structures in a CBOR map.

use ciborium::Value;

use super::claims::{PlatformClaims, RealmClaims};
use crate::{
    CborError,
    cbor::{self, Map, UnverifiedSign1, bytes_of},
};

/// Longest token that is read.
const MAX_TOKEN_BYTES: usize = 64 << 10;
const COLLECTION_TAG: u64 = 399;
const PLATFORM: u32 = 44234;
const REALM: u32 = 44241;

/// Why bytes are not a token. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CcaTokenError {
    /// Too long.
    #[error("token of {got} bytes exceeds the limit of {MAX_TOKEN_BYTES}")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not tagged as a collection of CCA tokens.
    #[error("not a CBOR item with tag {COLLECTION_TAG}")]
    NotACollection,
    /// A structure or a claim.
    #[error("{part}: {fault}")]
    Part {
        /// Which.
        part: &'static str,
        /// What is wrong with it.
        fault: CborError,
    },
}

/// A token as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct UnverifiedToken {
    pub(super) platform: UnverifiedSign1,
    pub(super) realm: UnverifiedSign1,
    pub(super) platform_claims: PlatformClaims,
    pub(super) realm_claims: RealmClaims,
}

impl UnverifiedToken {
    /// Parses a token; nothing may follow it or its parts.
    ///
    /// # Errors
    /// [`CcaTokenError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CcaTokenError> {
        if bytes.len() > MAX_TOKEN_BYTES {
            return Err(CcaTokenError::TooLong { got: bytes.len() });
        }
        let of = |part| move |fault| CcaTokenError::Part { part, fault };
        let Value::Tag(COLLECTION_TAG, collection) = cbor::parse(bytes).map_err(of("token"))? else {
            return Err(CcaTokenError::NotACollection);
        };
        let mut collection = Map::new(*collection).map_err(of("token"))?;
        let mut part = |key: u32, field| collection.need(key, field, "a byte string", bytes_of(1..));
        let platform = part(PLATFORM, "platform token").map_err(of("token"))?;
        let realm = part(REALM, "realm token").map_err(of("token"))?;
        let platform = cbor::parse(&platform).and_then(UnverifiedSign1::new).map_err(of("platform token"))?;
        let realm = cbor::parse(&realm).and_then(UnverifiedSign1::new).map_err(of("realm token"))?;
        Ok(Self {
            platform_claims: PlatformClaims::parse(platform.payload()).map_err(of("platform token"))?,
            realm_claims: RealmClaims::parse(realm.payload()).map_err(of("realm token"))?,
            platform,
            realm,
        })
    }

    /// What the chip says, unverified.
    #[must_use]
    pub fn platform_claims(&self) -> &PlatformClaims {
        &self.platform_claims
    }

    /// What is said of the realm, unverified.
    #[must_use]
    pub fn realm_claims(&self) -> &RealmClaims {
        &self.realm_claims
    }
}
