//! The root of a KMS.

use dstack_manifest::{AppId, InstanceId};
use rand_core::CryptoRngCore;

use crate::{
    EnvSecret, Secret,
    ec::{InvalidKey, K256Key, P256Key},
    kdf::{derive_dh_secret, derive_key, derive_p256},
    signature::{RecoverableSignature, app_key_digest, env_key_digest, env_key_digest_v1},
};

/// The two root keys of a KMS; everything it releases is derived from them.
///
/// The certificate key is both a signing key and input key material. That is how deployed systems derive; it cannot change
/// without losing every disk.
#[derive(Debug)]
pub struct RootKeys {
    /// Key of the root certificate, and the root of disk, environment and app CA keys.
    pub ca: P256Key,
    /// Root of the apps' secp256k1 keys, and what signs them.
    pub k256: K256Key,
}

impl RootKeys {
    /// A new root.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self { ca: P256Key::generate(rng), k256: K256Key::generate(rng) }
    }

    /// Key of an app's CA. Source: SPEC.md §2.
    ///
    /// Errors: as [`derive_p256`].
    pub fn app_ca_key(&self, app_id: &AppId) -> Result<P256Key, InvalidKey> {
        derive_p256(&self.ca.scalar(), &[app_id.as_bytes(), b"app-ca"])
    }

    /// Key of an instance's disk; its lower-case hex is the LUKS passphrase. Source: SPEC.md §2.
    ///
    /// Errors: as [`derive_p256`].
    pub fn disk_key(&self, app_id: &AppId, instance_id: &InstanceId) -> Result<Secret<32>, InvalidKey> {
        derive_dh_secret(&self.ca.scalar(), &[app_id.as_bytes(), instance_id.as_bytes(), b"app-disk-crypt-key"])
    }

    /// X25519 secret that opens an app's sealed environment. Source: SPEC.md §2.
    ///
    /// Errors: as [`derive_p256`].
    pub fn env_key(&self, app_id: &AppId) -> Result<EnvSecret, InvalidKey> {
        derive_dh_secret(&self.ca.scalar(), &[app_id.as_bytes(), b"env-encrypt-key"]).map(EnvSecret::new)
    }

    /// An app's secp256k1 key. Source: SPEC.md §2.
    ///
    /// Errors: as [`derive_p256`], on the other curve.
    pub fn app_k256_key(&self, app_id: &AppId) -> Result<K256Key, InvalidKey> {
        K256Key::from_scalar(&derive_key(&self.k256.scalar(), &[app_id.as_bytes(), b"app-key"]))
    }

    /// Signs an app's secp256k1 public key; always the same bytes. Source: SPEC.md §3.
    ///
    /// Errors: none in practice; the signer's are passed on.
    pub fn sign_app_key(&self, app_id: &AppId, key: &K256Key) -> Result<RecoverableSignature, InvalidKey> {
        self.k256.sign_digest(&app_key_digest(app_id, &key.public_key()))
    }

    /// Ed25519 seed that signs the checkpoints of the release log `log_id`. Each log has its own: two replicas with one root never
    /// sign two trees with one key. Source: SPEC.md §2.
    #[must_use]
    pub fn release_log_seed(&self, log_id: &[u8; 16]) -> Secret<32> {
        derive_key(&self.k256.scalar(), &[b"dstack/v1/release-log/ed25519", log_id])
    }

    /// What a KMS authenticates the nonces with that it gives out. Source: SPEC.md §2.
    #[must_use]
    pub fn nonce_key(&self) -> Secret<32> {
        derive_key(&self.k256.scalar(), &[b"dstack/v1/kms-nonce/hkdf-sha256"])
    }

    /// Signs an app's environment public key without a time, for older clients; always the same bytes. Source: SPEC.md §3.
    ///
    /// Errors: none in practice; the signer's are passed on.
    pub fn sign_env_key(&self, app_id: &AppId, public_key: &[u8; 32]) -> Result<RecoverableSignature, InvalidKey> {
        self.k256.sign_digest(&env_key_digest(app_id, public_key))
    }

    /// Signs an app's environment public key with the time `signed_at` (unix seconds). Source: SPEC.md §3.
    ///
    /// Errors: none in practice; the signer's are passed on.
    pub fn sign_env_key_v1(&self, app_id: &AppId, signed_at: u64, public_key: &[u8; 32]) -> Result<RecoverableSignature, InvalidKey> {
        self.k256.sign_digest(&env_key_digest_v1(app_id, signed_at, public_key))
    }
}
