//! Keys an application asks for by path, and signatures with them.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signer as _, Verifier as _};
use k256::ecdsa::{
    Signature, VerifyingKey,
    signature::hazmat::{PrehashSigner as _, PrehashVerifier as _},
};
use sha2::{Digest as _, Sha256};

use crate::{
    Secret,
    ec::{InvalidKey, K256Key},
    kdf::derive_key,
    signature::{RecoverableSignature, keccak},
};

/// Path of the key that signs messages for an app.
pub const SIGNING_PATH: &str = "vms";
/// Its purpose in the signature chain.
pub const SIGNING_PURPOSE: &str = "signing";

/// How the 32 bytes of a path key are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKeyAlgorithm {
    /// Scalar on secp256k1; public key compressed, 33 bytes.
    Secp256k1,
    /// As [`Self::Secp256k1`]; messages to sign are digests already. Not an algorithm one can ask a key for.
    Secp256k1Prehashed,
    /// Ed25519 seed; public key 32 bytes.
    Ed25519,
}

/// The name is none of the algorithms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unsupported algorithm")]
pub struct UnknownAlgorithm;

impl FromStr for PathKeyAlgorithm {
    type Err = UnknownAlgorithm;

    /// Empty text and `k256` are `secp256k1`.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        match name {
            "" | "k256" | "secp256k1" => Ok(Self::Secp256k1),
            "secp256k1_prehashed" => Ok(Self::Secp256k1Prehashed),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(UnknownAlgorithm),
        }
    }
}

/// A message or signature that cannot be processed; a signature that merely does not match is no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// A digest of the wrong length.
    #[error("Pre-hashed signing requires a 32-byte digest, but received {got} bytes")]
    DigestLength {
        /// What was given.
        got: usize,
    },
    /// Not a public key of the algorithm.
    #[error("invalid public key")]
    PublicKey,
    /// Not a signature of the algorithm.
    #[error("invalid signature")]
    Signature,
    /// The key cannot be used with the algorithm.
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

/// A derived key with the chain that ties it to the KMS root.
pub struct PathKey {
    algorithm: PathKeyAlgorithm,
    key: Secret<32>,
    public_key: Vec<u8>,
    signature_chain: [Vec<u8>; 2],
}

impl PathKey {
    /// The key of `path` under an application's key, which the KMS vouched for with `app_key_signature`. Source: SPEC.md §4.
    ///
    /// Errors: the derived bytes are no key of the curve (probability 2^-128).
    pub fn derive(
        app_key: &K256Key,
        app_key_signature: Option<&RecoverableSignature>,
        path: &str,
        purpose: &str,
        algorithm: PathKeyAlgorithm,
    ) -> Result<Self, InvalidKey> {
        let key = derive_key(&app_key.scalar(), &[path.as_bytes()]);
        let public_key = match algorithm {
            PathKeyAlgorithm::Ed25519 => ed25519_dalek::SigningKey::from_bytes(key.expose()).verifying_key().as_bytes().to_vec(),
            PathKeyAlgorithm::Secp256k1 | PathKeyAlgorithm::Secp256k1Prehashed => K256Key::from_scalar(&key)?.public_key().to_vec(),
        };
        let digest = keccak(&[purpose.as_bytes(), b":", hex::encode(&public_key).as_bytes()]);
        let signature_chain = [app_key.sign_digest(&digest)?.to_vec(), app_key_signature.map(|s| s.to_vec()).unwrap_or_default()];
        Ok(Self { algorithm, key, public_key, signature_chain })
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &Secret<32> {
        &self.key
    }

    /// 33 bytes (secp256k1) or 32 bytes (Ed25519).
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The app key's signature over purpose and public key, then the KMS's over the app key (empty without a KMS).
    #[must_use]
    pub fn signature_chain(&self) -> &[Vec<u8>; 2] {
        &self.signature_chain
    }

    /// Signs a message; 64 bytes. secp256k1 signs its SHA-256, or the digest itself when prehashed.
    ///
    /// Errors: a digest that has not 32 bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        if self.algorithm == PathKeyAlgorithm::Ed25519 {
            return Ok(ed25519_dalek::SigningKey::from_bytes(self.key.expose()).sign(message).to_vec());
        }
        let digest = digest_of(self.algorithm, message)?;
        let key = K256Key::from_scalar(&self.key)?;
        let signature: Signature = key.signing_key().sign_prehash(&digest).map_err(|_| SignatureError::Signature)?;
        Ok(signature.to_vec())
    }
}

impl fmt::Debug for PathKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathKey({:?}, {}, ..)", self.algorithm, hex::encode(&self.public_key))
    }
}

/// Whether `signature` over `message` is by `public_key`.
///
/// Errors: a key, signature or digest that cannot be decoded.
pub fn verify_message(algorithm: PathKeyAlgorithm, message: &[u8], signature: &[u8], public_key: &[u8]) -> Result<bool, SignatureError> {
    if algorithm == PathKeyAlgorithm::Ed25519 {
        let key: &[u8; 32] = public_key.try_into().map_err(|_| SignatureError::PublicKey)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| SignatureError::PublicKey)?;
        let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| SignatureError::Signature)?;
        return Ok(key.verify(message, &signature).is_ok());
    }
    let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| SignatureError::PublicKey)?;
    let signature = Signature::from_slice(signature).map_err(|_| SignatureError::Signature)?;
    Ok(key.verify_prehash(&digest_of(algorithm, message)?, &signature).is_ok())
}

fn digest_of(algorithm: PathKeyAlgorithm, message: &[u8]) -> Result<[u8; 32], SignatureError> {
    if algorithm == PathKeyAlgorithm::Secp256k1Prehashed {
        return message.try_into().map_err(|_| SignatureError::DigestLength { got: message.len() });
    }
    Ok(Sha256::digest(message).into())
}

#[cfg(test)]
mod tests;
