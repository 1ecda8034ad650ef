//! Derivation of child secrets. The salt and the missing length prefixes are fixed by deployed clients.

use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};

use crate::{
    Secret,
    ec::{InvalidKey, P256Key},
};

/// HKDF salt of every derivation (SPEC.md §1).
const SALT: &[u8] = b"RATLS";

/// 32 bytes of `HKDF-SHA256(salt = "RATLS", ikm, info = context[0] || context[1] || …)`.
///
/// `context` parts are not length-prefixed: callers keep the set of parts unambiguous (all ids have a fixed length).
/// Source: SPEC.md §1.
#[must_use]
pub fn derive_key(ikm: &Secret<32>, context: &[&[u8]]) -> Secret<32> {
    let hkdf = Hkdf::<Sha256>::new(Some(SALT), ikm.expose());
    Secret::fill_with(|okm| {
        let expanded = hkdf.expand_multi_info(context, okm);
        assert!(expanded.is_ok(), "32 bytes are within HKDF's limit");
    })
}

/// A P-256 key whose scalar is [`derive_key`]'s output.
///
/// Errors: the output is zero or not below the group order, which happens with probability 2^-32; there is no retry.
/// Source: SPEC.md §1.
pub fn derive_p256(ikm: &Secret<32>, context: &[&[u8]]) -> Result<P256Key, InvalidKey> {
    P256Key::from_scalar(&derive_key(ikm, context))
}

/// SHA-256 of the PKCS#8 DER of [`derive_p256`]: the form in which disk and environment keys are derived.
///
/// Errors: as [`derive_p256`].
/// Source: SPEC.md §1.
pub fn derive_dh_secret(ikm: &Secret<32>, context: &[&[u8]]) -> Result<Secret<32>, InvalidKey> {
    let der = derive_p256(ikm, context)?.to_pkcs8_der()?;
    Ok(Secret::new(Sha256::digest(der.as_slice()).into()))
}
