//! Who makes keys. Today one process that has the whole root; a backend that shares the root among several machines, none of which has it,
//! answers the same questions later, which is why they are asked of a trait and may take time.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError, RwLock},
};

use dstack_api::RpcError;
use dstack_key_hierarchy::{
    AppKeys, EnvPublicKey, Epochs, InvalidKey, P256Key, RecoverableSignature, RootKeys, SeparatedKeys, separated_app_key_digest,
    separated_env_key_digest,
};
use dstack_manifest::{AppId, InstanceId};
use lru::LruCache;

/// Apps whose signatures are remembered, in each of the two memories.
const REMEMBERED_APPS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Why a key is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyBackendError {
    #[error("deriving a key")]
    Derive(#[from] InvalidKey),
    #[error("epoch {number} is not handed out")]
    Epoch { number: u32 },
    #[cfg_attr(not(test), allow(dead_code, reason = "for the backend whose machines share the root"))]
    #[error("no single machine of this KMS has the root, so none can hand it out")]
    NoWholeRoot,
}

/// An environment key with the KMS's signatures, without and with the time it was asked for.
pub(crate) struct SignedEnvKey {
    pub(crate) public_key: EnvPublicKey,
    pub(crate) signature: Option<RecoverableSignature>,
    pub(crate) timed_signature: RecoverableSignature,
    pub(crate) epoch: u32,
}

/// Separated keys of one epoch, and how long they are handed out.
pub(crate) struct EpochKeySet {
    pub(crate) keys: SeparatedKeys,
    pub(crate) k256_signature: RecoverableSignature,
    pub(crate) is_current: bool,
    pub(crate) readable_until: Option<u64>,
}

/// Makes every key that leaves a KMS. `now`: Unix seconds.
pub(crate) trait KeyBackend: Send + Sync {
    /// Keys of an instance, by the compatible scheme.
    fn app_keys(&self, app_id: &AppId, instance_id: &InstanceId) -> impl Future<Output = Result<AppKeys, KeyBackendError>> + Send;

    /// Key of an app's authority.
    fn app_ca_key(&self, app_id: &AppId) -> impl Future<Output = Result<P256Key, KeyBackendError>> + Send;

    /// What owners seal an app's environment to, by the compatible scheme.
    fn env_key(&self, app_id: &AppId, now: u64) -> impl Future<Output = Result<SignedEnvKey, KeyBackendError>> + Send;

    /// Keys of an instance, by the separated scheme, of every readable epoch, oldest first.
    fn epoch_keys(
        &self,
        app_id: &AppId,
        instance_id: &InstanceId,
        now: u64,
    ) -> impl Future<Output = Result<Vec<EpochKeySet>, KeyBackendError>> + Send;

    /// What owners seal an instance's environment to, by the separated scheme. `epoch`: 0 for the current one.
    fn epoch_env_key(
        &self,
        app_id: &AppId,
        instance_id: &InstanceId,
        epoch: u32,
        now: u64,
    ) -> impl Future<Output = Result<SignedEnvKey, KeyBackendError>> + Send;

    /// What the root signs is verified with: compressed secp256k1 key.
    fn k256_public_key(&self) -> [u8; 33];

    /// The k256 root's signature over a digest. Callers put a label into what they hash.
    fn sign(&self, digest: &[u8; 32]) -> impl Future<Output = Result<RecoverableSignature, KeyBackendError>> + Send;

    /// The root itself, for another machine or for custodians.
    ///
    /// Errors: [`KeyBackendError::NoWholeRoot`] of a backend whose machines share it; those copy and recover shares in their own way.
    fn whole_root(&self) -> Result<WholeRoot<'_>, KeyBackendError>;
}

/// Signatures over something of an app that never changes.
struct AppSignatures(Mutex<LruCache<AppId, RecoverableSignature>>);

impl AppSignatures {
    fn of(
        &self,
        app_id: &AppId,
        sign: impl FnOnce() -> Result<RecoverableSignature, InvalidKey>,
    ) -> Result<RecoverableSignature, InvalidKey> {
        if let Some(signature) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(app_id) {
            return Ok(*signature);
        }
        let signature = sign()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(*app_id, signature);
        Ok(signature)
    }
}

impl Default for AppSignatures {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED_APPS)))
    }
}

/// What a root signed for its apps and would sign again with the same bytes. Nothing in it is secret.
///
/// Everybody may ask for an environment key, only attested apps for an app key: apart, so that strangers push out nobody else's.
#[derive(Default)]
pub(crate) struct SignedKeys {
    app_keys: AppSignatures,
    env_keys: AppSignatures,
}

/// The whole root in this process.
#[derive(Clone, Copy)]
pub(crate) struct WholeRoot<'a> {
    pub(crate) root: &'a RootKeys,
    pub(crate) epochs: &'a RwLock<Epochs>,
    pub(crate) signed: &'a SignedKeys,
}

impl WholeRoot<'_> {
    /// Whether `other` is the same root. Epochs do not count.
    pub(crate) fn is(&self, other: &RootKeys) -> bool {
        self.root.ca.scalar() == other.ca.scalar() && self.root.k256.scalar() == other.k256.scalar()
    }
}

impl KeyBackend for WholeRoot<'_> {
    async fn app_keys(&self, app_id: &AppId, instance_id: &InstanceId) -> Result<AppKeys, KeyBackendError> {
        let k256_key = self.root.app_k256_key(app_id)?;
        let k256_signature = self.signed.app_keys.of(app_id, || self.root.sign_app_key(app_id, &k256_key))?;
        Ok(AppKeys {
            disk_crypt_key: self.root.disk_key(app_id, instance_id)?,
            env_crypt_key: Some(self.root.env_key(app_id)?),
            k256_key,
            k256_signature: Some(k256_signature),
        })
    }

    async fn app_ca_key(&self, app_id: &AppId) -> Result<P256Key, KeyBackendError> {
        Ok(self.root.app_ca_key(app_id)?)
    }

    async fn env_key(&self, app_id: &AppId, now: u64) -> Result<SignedEnvKey, KeyBackendError> {
        let public_key = self.root.env_key(app_id)?.public_key();
        Ok(SignedEnvKey {
            public_key,
            signature: Some(self.signed.env_keys.of(app_id, || self.root.sign_env_key(app_id, &public_key))?),
            timed_signature: self.root.sign_env_key_v1(app_id, now, &public_key)?,
            epoch: 0,
        })
    }

    async fn epoch_keys(&self, app_id: &AppId, instance_id: &InstanceId, now: u64) -> Result<Vec<EpochKeySet>, KeyBackendError> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        let current = epochs.current(now).map(|epoch| epoch.number);
        let sets = epochs.readable(now).map(|epoch| {
            let keys = SeparatedKeys::derive(&epoch.seed, epoch.number, app_id, instance_id)?;
            let digest = separated_app_key_digest(epoch.number, app_id, instance_id, &keys.k256_key.public_key());
            let k256_signature = self.root.k256.sign_digest(&digest)?;
            Ok(EpochKeySet { keys, k256_signature, is_current: Some(epoch.number) == current, readable_until: epoch.readable_until })
        });
        sets.collect()
    }

    async fn epoch_env_key(&self, app_id: &AppId, instance_id: &InstanceId, epoch: u32, now: u64) -> Result<SignedEnvKey, KeyBackendError> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        let current = epochs.current(now).map(|current| current.number);
        let number = if epoch == 0 { current.unwrap_or_default() } else { epoch };
        let epoch = epochs.readable(now).find(|readable| readable.number == number).ok_or(KeyBackendError::Epoch { number })?;
        let public_key = SeparatedKeys::derive(&epoch.seed, number, app_id, instance_id)?.env_crypt_key.public_key();
        let digest = separated_env_key_digest(number, app_id, instance_id, now, &public_key);
        Ok(SignedEnvKey { public_key, signature: None, timed_signature: self.root.k256.sign_digest(&digest)?, epoch: number })
    }

    fn k256_public_key(&self) -> [u8; 33] {
        self.root.k256.public_key()
    }

    async fn sign(&self, digest: &[u8; 32]) -> Result<RecoverableSignature, KeyBackendError> {
        Ok(self.root.k256.sign_digest(digest)?)
    }

    fn whole_root(&self) -> Result<WholeRoot<'_>, KeyBackendError> {
        Ok(*self)
    }
}

/// What to do where no machine has the root.
pub(crate) const NO_WHOLE_ROOT_FIX: &str = "add, replace or recover machines as the key backend describes";

/// What an operator or a replica hears who asks for what no machine has.
pub(crate) fn no_whole_root(error: KeyBackendError) -> RpcError {
    match error {
        KeyBackendError::NoWholeRoot => RpcError::new("kms/no-whole-root", error.to_string(), NO_WHOLE_ROOT_FIX),
        error => RpcError::internal(error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod shared_root;
