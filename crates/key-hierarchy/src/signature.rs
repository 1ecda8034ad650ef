//! What the secp256k1 keys sign, and how others check it.

use dstack_manifest::AppId;
use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use sha3::{Digest as _, Keccak256};

/// `r(32) || s(32) || recovery id(1)`, recovery id 0 or 1.
pub type RecoverableSignature = [u8; 65];

/// Prefix of an app key that the KMS vouches for.
const ISSUED: &[u8] = b"dstack-kms-issued:";
/// Prefix of an environment encryption key.
const ENV_KEY: &[u8] = b"dstack-env-encrypt-pubkey:";
/// Prefix of a release log's key.
const RELEASE_LOG: &[u8] = b"dstack-kms-release-log:";

/// Oldest timed environment key signature that is accepted.
pub const ENV_KEY_MAX_AGE_SECONDS: u64 = 300;
/// How far in the future its time may be.
pub const ENV_KEY_MAX_SKEW_SECONDS: u64 = 60;

/// `keccak256("dstack-kms-issued:" || app id || compressed app public key)`. Source: SPEC.md §3.
#[must_use]
pub fn app_key_digest(app_id: &AppId, app_public_key: &[u8; 33]) -> [u8; 32] {
    keccak(&[ISSUED, app_id.as_bytes(), app_public_key])
}

/// `keccak256("dstack-env-encrypt-pubkey:" || app id || X25519 public key)`; says nothing about when. Source: SPEC.md §3.
#[must_use]
pub fn env_key_digest(app_id: &AppId, public_key: &[u8; 32]) -> [u8; 32] {
    keccak(&[ENV_KEY, app_id.as_bytes(), public_key])
}

/// As [`env_key_digest`] with `signed_at` (unix seconds, u64 big endian) before the key. Source: SPEC.md §3.
#[must_use]
pub fn env_key_digest_v1(app_id: &AppId, signed_at: u64, public_key: &[u8; 32]) -> [u8; 32] {
    keccak(&[ENV_KEY, app_id.as_bytes(), &signed_at.to_be_bytes(), public_key])
}

/// `keccak256("dstack-kms-release-log:" || verifier key of the log, as text)`. Source: SPEC.md §3.
#[must_use]
pub fn log_key_digest(verifier_key: &str) -> [u8; 32] {
    keccak(&[RELEASE_LOG, verifier_key.as_bytes()])
}

/// Compressed public key of the signer of `digest`, or none if the signature is malformed.
///
/// A recovered key means nothing until it is compared with an expected one.
#[must_use]
pub fn recover(digest: &[u8; 32], signature: &[u8]) -> Option<[u8; 33]> {
    let (id, rs) = signature.split_last()?;
    let signature = Signature::from_slice(rs).ok()?;
    let recovery = RecoveryId::from_byte(*id).filter(|id| !id.is_x_reduced())?;
    let key = VerifyingKey::recover_from_prehash(digest, &signature, recovery).ok()?;
    key.to_encoded_point(true).as_bytes().try_into().ok()
}

/// Whether the KMS with `kms_public_key` vouches for an app's public key.
#[must_use]
pub fn verify_app_key(app_id: &AppId, app_public_key: &[u8; 33], signature: &[u8], kms_public_key: &[u8; 33]) -> bool {
    recover(&app_key_digest(app_id, app_public_key), signature).as_ref() == Some(kms_public_key)
}

/// Why an environment key is not to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyEnvKeyError {
    /// Malformed, or by another key.
    #[error("the signature of the environment key is not by the expected KMS")]
    Signer,
    /// Too old.
    #[error("the environment key was signed {age_seconds} s ago, at most {ENV_KEY_MAX_AGE_SECONDS} s are accepted")]
    Stale {
        /// Its age.
        age_seconds: u64,
    },
    /// From the future.
    #[error("the environment key was signed {ahead_seconds} s in the future, at most {ENV_KEY_MAX_SKEW_SECONDS} s are accepted")]
    Future {
        /// How far ahead.
        ahead_seconds: u64,
    },
}

/// Checks the form without time. Prefer [`verify_env_key_v1`]: this one can be replayed for ever.
///
/// Errors: [`VerifyEnvKeyError::Signer`].
pub fn verify_env_key(app_id: &AppId, public_key: &[u8; 32], signature: &[u8], kms_public_key: &[u8; 33]) -> Result<(), VerifyEnvKeyError> {
    let signer = recover(&env_key_digest(app_id, public_key), signature);
    if signer.as_ref() == Some(kms_public_key) { Ok(()) } else { Err(VerifyEnvKeyError::Signer) }
}

/// Checks the timed form. `signed_at` and `now`: unix seconds.
///
/// Errors: another signer, too old, too far in the future.
pub fn verify_env_key_v1(
    app_id: &AppId,
    (public_key, signed_at): (&[u8; 32], u64),
    signature: &[u8],
    kms_public_key: &[u8; 33],
    now: u64,
) -> Result<(), VerifyEnvKeyError> {
    if recover(&env_key_digest_v1(app_id, signed_at, public_key), signature).as_ref() != Some(kms_public_key) {
        return Err(VerifyEnvKeyError::Signer);
    }
    let age_seconds = now.saturating_sub(signed_at);
    let ahead_seconds = signed_at.saturating_sub(now);
    if age_seconds > ENV_KEY_MAX_AGE_SECONDS {
        return Err(VerifyEnvKeyError::Stale { age_seconds });
    }
    if ahead_seconds > ENV_KEY_MAX_SKEW_SECONDS {
        return Err(VerifyEnvKeyError::Future { ahead_seconds });
    }
    Ok(())
}

pub(crate) fn keccak(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Keccak256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
