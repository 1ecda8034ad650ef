//! Our own derivations: every key has a label that says all it depends on. Source: SPEC.md §7.

use dstack_manifest::{AppId, InstanceId};
use hkdf::Hkdf;
use sha2::Sha256;

use crate::{
    EnvPublicKey, EnvSecret, K256Key, Secret,
    ec::InvalidKey,
    signature::{RecoverableSignature, keccak, recover},
};

const SALT: &[u8] = b"dstack-separated-keys";
const MAGIC: &[u8] = b"dstack-key";
/// Of the label's layout.
const VERSION: u8 = 1;
const ISSUED: &[u8] = b"dstack-kms-issued-separated:";
const ENV_KEY: &[u8] = b"dstack-env-encrypt-pubkey-separated:";

/// What a derived key is used with; part of its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// 32 bytes for symmetric ciphers.
    Symmetric,
    /// X25519 secret.
    X25519,
    /// secp256k1 scalar.
    Secp256k1,
    /// Ed25519 seed.
    Ed25519,
}

impl KeyAlgorithm {
    /// As it stands in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Symmetric => "symmetric-256",
            Self::X25519 => "x25519",
            Self::Secp256k1 => "secp256k1",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// Everything a separated key depends on beside its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLabel<'a> {
    /// What it is used with.
    pub algorithm: KeyAlgorithm,
    /// What it is for, such as `disk`.
    pub purpose: &'a str,
    /// Whose: the epoch of the seed.
    pub epoch: u32,
    /// The application.
    pub app_id: &'a AppId,
    /// The instance; empty where the app has none.
    pub instance_id: &'a InstanceId,
}

impl KeyLabel<'_> {
    /// `HKDF-SHA256` of `seed` under this label; `attempt` counts the outputs that were no key of a curve before it.
    fn derive(&self, seed: &Secret<32>, attempt: u8) -> Secret<32> {
        let (algorithm, instance) = (self.algorithm.name(), self.instance_id.as_bytes());
        let epoch = self.epoch.to_be_bytes();
        let parts: [&[u8]; 11] = [
            MAGIC,
            &[VERSION, attempt],
            &epoch,
            &length(algorithm.as_bytes()),
            algorithm.as_bytes(),
            &length(self.purpose.as_bytes()),
            self.purpose.as_bytes(),
            &length(self.app_id.as_bytes()),
            self.app_id.as_bytes(),
            &length(instance),
            instance,
        ];
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), seed.expose());
        Secret::fill_with(|okm| {
            let expanded = hkdf.expand_multi_info(&parts, okm);
            assert!(expanded.is_ok(), "32 bytes are within HKDF's limit");
        })
    }

    /// The key's bytes.
    #[must_use]
    pub fn key(&self, seed: &Secret<32>) -> Secret<32> {
        self.derive(seed, 0)
    }

    /// The first output that is a secp256k1 scalar.
    ///
    /// Errors: none of 256 outputs is one, which does not happen.
    pub fn k256_key(&self, seed: &Secret<32>) -> Result<K256Key, InvalidKey> {
        let candidates = (0..=u8::MAX).map(|attempt| K256Key::from_scalar(&self.derive(seed, attempt)));
        let mut last = InvalidKey { curve: "secp256k1" };
        for candidate in candidates {
            match candidate {
                Ok(key) => return Ok(key),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn length(part: &[u8]) -> [u8; 2] {
    // Labels are ids and words; a longer one would be cut, and two such labels would still differ in their bytes.
    u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes()
}

/// All keys of one instance in one epoch.
#[derive(Debug)]
pub struct SeparatedKeys {
    /// Epoch of the seed they come from.
    pub epoch: u32,
    /// Data disk.
    pub disk_crypt_key: Secret<32>,
    /// Opens the instance's sealed environment.
    pub env_crypt_key: EnvSecret,
    /// Root of the keys that the app asks for by path.
    pub k256_key: K256Key,
}

impl SeparatedKeys {
    /// Derives them.
    ///
    /// Errors: as [`KeyLabel::k256_key`].
    pub fn derive(seed: &Secret<32>, epoch: u32, app_id: &AppId, instance_id: &InstanceId) -> Result<Self, InvalidKey> {
        let label = |algorithm, purpose| KeyLabel { algorithm, purpose, epoch, app_id, instance_id };
        Ok(Self {
            epoch,
            disk_crypt_key: label(KeyAlgorithm::Symmetric, "disk").key(seed),
            env_crypt_key: EnvSecret::new(label(KeyAlgorithm::X25519, "environment").key(seed)),
            k256_key: label(KeyAlgorithm::Secp256k1, "application").k256_key(seed)?,
        })
    }
}

/// What the KMS signs over an instance's secp256k1 public key. Source: SPEC.md §7.
#[must_use]
pub fn separated_app_key_digest(epoch: u32, app_id: &AppId, instance_id: &InstanceId, public_key: &[u8; 33]) -> [u8; 32] {
    let instance = instance_id.as_bytes();
    keccak(&[ISSUED, &epoch.to_be_bytes(), app_id.as_bytes(), &length(instance), instance, public_key])
}

/// What the KMS signs over an instance's environment public key at `signed_at` (Unix seconds). Source: SPEC.md §7.
#[must_use]
pub fn separated_env_key_digest(
    epoch: u32,
    app_id: &AppId,
    instance_id: &InstanceId,
    signed_at: u64,
    public_key: &EnvPublicKey,
) -> [u8; 32] {
    let instance = instance_id.as_bytes();
    keccak(&[ENV_KEY, &epoch.to_be_bytes(), app_id.as_bytes(), &length(instance), instance, &signed_at.to_be_bytes(), public_key])
}

/// Whether the KMS with `kms_public_key` signed `digest`.
#[must_use]
pub fn is_signed_by(digest: &[u8; 32], signature: &RecoverableSignature, kms_public_key: &[u8; 33]) -> bool {
    recover(digest, signature).as_ref() == Some(kms_public_key)
}
