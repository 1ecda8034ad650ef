//! A backend as a threshold of machines will be one: it makes keys, signs, and has no root to give away.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_api::kms::{CreateRecoveryRequest, GetKmsKeyRequest};
use rand_core::OsRng;

use super::*;
use crate::{recovery, replication::Sender};

/// Answers from a root that only this test knows of.
pub(crate) struct SharedRoot {
    root: RootKeys,
    epochs: RwLock<Epochs>,
    signed: SignedKeys,
}

impl SharedRoot {
    fn new() -> Self {
        let root = RootKeys::generate(&mut OsRng);
        Self { epochs: RwLock::new(Epochs::first(&root.ca)), root, signed: SignedKeys::default() }
    }

    fn hidden(&self) -> WholeRoot<'_> {
        WholeRoot { root: &self.root, epochs: &self.epochs, signed: &self.signed }
    }
}

impl KeyBackend for SharedRoot {
    async fn app_keys(&self, app_id: &AppId, instance_id: &InstanceId) -> Result<AppKeys, KeyBackendError> {
        self.hidden().app_keys(app_id, instance_id).await
    }

    async fn app_ca_key(&self, app_id: &AppId) -> Result<P256Key, KeyBackendError> {
        self.hidden().app_ca_key(app_id).await
    }

    async fn env_key(&self, app_id: &AppId, now: u64) -> Result<SignedEnvKey, KeyBackendError> {
        self.hidden().env_key(app_id, now).await
    }

    async fn epoch_keys(&self, app_id: &AppId, instance_id: &InstanceId, now: u64) -> Result<Vec<EpochKeySet>, KeyBackendError> {
        self.hidden().epoch_keys(app_id, instance_id, now).await
    }

    async fn epoch_env_key(&self, app_id: &AppId, instance_id: &InstanceId, epoch: u32, now: u64) -> Result<SignedEnvKey, KeyBackendError> {
        self.hidden().epoch_env_key(app_id, instance_id, epoch, now).await
    }

    fn k256_public_key(&self) -> [u8; 33] {
        self.hidden().k256_public_key()
    }

    async fn sign(&self, digest: &[u8; 32]) -> Result<RecoverableSignature, KeyBackendError> {
        self.hidden().sign(digest).await
    }

    fn whole_root(&self) -> Result<WholeRoot<'_>, KeyBackendError> {
        Err(KeyBackendError::NoWholeRoot)
    }
}

#[test]
fn a_root_that_no_machine_has_is_neither_sent_nor_split() {
    let backend = SharedRoot::new();
    let leaf_key = dstack_ra_tls::CertKey::generate().unwrap();
    let sender = Sender { backend: &backend, temp_key_pem: "", leaf: &[], leaf_key: &leaf_key };

    let sent = sender.answer(&GetKmsKeyRequest::default(), &[]);
    let split = recovery::create(&backend, &CreateRecoveryRequest { threshold: 1, recipients: Vec::new() }, 0);

    assert!(matches!(sent, Err(crate::replication::SendError::Backend(KeyBackendError::NoWholeRoot))));
    let RpcError { code, fix, .. } = no_whole_root(KeyBackendError::NoWholeRoot);
    assert_eq!(code, "kms/no-whole-root");
    assert!(!fix.is_empty());
    assert!(matches!(split, Err(recovery::SessionError::Backend(KeyBackendError::NoWholeRoot))));
}

#[tokio::test]
async fn it_signs_as_the_root_whose_public_key_it_names() {
    let backend = SharedRoot::new();

    let signature = backend.sign(&[7; 32]).await.unwrap();

    assert!(dstack_key_hierarchy::is_signed_by(&[7; 32], &signature, &backend.k256_public_key()));
}
