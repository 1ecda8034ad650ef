//! The keys of one application instance.

use crate::{
    EnvSecret, PathKey, PathKeyAlgorithm, Secret,
    ec::{InvalidKey, K256Key, P256Key},
    kdf::{derive_dh_secret, derive_key, derive_p256},
    signature::RecoverableSignature,
};

/// What a guest works with after it obtained its keys, from whichever provider.
#[derive(Debug)]
pub struct AppKeys {
    /// Data disk; its lower-case hex is the LUKS passphrase.
    pub disk_crypt_key: Secret<32>,
    /// Opens the sealed environment; none when the provider is not a KMS, since then nobody could have sealed to it.
    pub env_crypt_key: Option<EnvSecret>,
    /// Root of the keys the app asks for by path.
    pub k256_key: K256Key,
    /// The KMS's signature over `k256_key`'s public key; none when the provider is not a KMS.
    pub k256_signature: Option<RecoverableSignature>,
}

impl AppKeys {
    /// The key an app asks for by path, with its signature chain. Source: SPEC.md §4.
    ///
    /// `purpose` enters the signature only: the same path gives the same key for each purpose and algorithm.
    ///
    /// Errors: the derived bytes are no key of the curve (probability 2^-128).
    pub fn path_key(&self, path: &str, purpose: &str, algorithm: PathKeyAlgorithm) -> Result<PathKey, InvalidKey> {
        PathKey::derive(&self.k256_key, self.k256_signature.as_ref(), path, purpose, algorithm)
    }
}

/// Keys made from a seed by the providers without a KMS (none, local, TPM). Source: SPEC.md §2.
#[derive(Debug)]
pub struct LocalAppKeys {
    /// Key of the self-signed app CA.
    pub ca_key: P256Key,
    /// The rest; without environment key and KMS signature.
    pub keys: AppKeys,
}

impl LocalAppKeys {
    /// Derives all keys from a provider's seed.
    ///
    /// Errors: as [`derive_p256`].
    pub fn from_seed(seed: &Secret<32>) -> Result<Self, InvalidKey> {
        Ok(Self {
            ca_key: derive_p256(seed, &[b"app-key"])?,
            keys: AppKeys {
                disk_crypt_key: derive_dh_secret(seed, &[b"app-disk-key"])?,
                env_crypt_key: None,
                k256_key: K256Key::from_scalar(&derive_key(seed, &[b"app-k256-key"]))?,
                k256_signature: None,
            },
        })
    }
}
