//! The calls of `Admin`.

use std::sync::{Arc, Mutex, PoisonError};

use dstack_api::{
    RpcError, UserFacing,
    kms::{
        AdminRpc, ClearImageCacheRequest, CreateRecoveryRequest, CreateRecoveryResponse, Empty, EpochInfo, EpochList, RecoverySession,
        RotateEpochRequest, ShareStatus, SubmitShareRequest, SyncEpochsRequest,
    },
};
use dstack_key_hierarchy::{EpochError, Epochs};
use dstack_rpc::Caller;
use dstack_service::clock::unix_seconds;
use rand_core::OsRng;

use crate::{
    api::Kms,
    key_backend::{KeyBackend as _, no_whole_root},
    key_store::{EPOCHS, write_secret},
    recovery::{self, Session},
    replication::Receiver,
};

/// What the admin calls work on.
pub(crate) struct AdminCalls {
    kms: Arc<Kms>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    drill: Mutex<Option<Session>>,
}

impl AdminCalls {
    pub(crate) fn new(kms: Arc<Kms>) -> Self {
        Self { kms, turn: tokio::sync::Mutex::default(), drill: Mutex::default() }
    }
}

impl AdminRpc for AdminCalls {
    type Caller = Caller;

    async fn clear_image_cache(&self, _: Caller, request: ClearImageCacheRequest) -> Result<Empty, RpcError> {
        for (field, value) in [("image_hash", &request.image_hash), ("config_hash", &request.config_hash)] {
            let is_hash = value.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_hash && value != "all" {
                let cause = format!("{field} is neither empty, nor \"all\", nor hex");
                return Err(RpcError::new("kms/cache-selector", cause, "give a hash as hex digits, or all"));
            }
        }
        // Images are never fetched: their measurements come with the evidence. So what was asked for is not in a cache.
        Ok(Empty {})
    }

    async fn get_epochs(&self, _: Caller, _: Empty) -> Result<EpochList, RpcError> {
        let epochs = self.kms.store.epochs.read().unwrap_or_else(PoisonError::into_inner);
        Ok(list(&epochs, unix_seconds()))
    }

    async fn rotate_epoch(&self, _: Caller, request: RotateEpochRequest) -> Result<EpochList, RpcError> {
        let _turn = self.turn.lock().await;
        let now = unix_seconds();
        self.change(now, |epochs| {
            let number = epochs.rotate(&mut OsRng, now, request.activate_in_seconds, request.readable_for_seconds)?;
            tracing::warn!(target: "dstack_kms::audit", epoch = number, activate_in_seconds = request.activate_in_seconds, "epoch made");
            Ok(())
        })
    }

    async fn sync_epochs(&self, _: Caller, request: SyncEpochsRequest) -> Result<EpochList, RpcError> {
        let _turn = self.turn.lock().await;
        let receiver = Receiver { tee: &self.kms.own.tee, verification: &self.kms.verification, authorizer: &self.kms.authorizer };
        let now = unix_seconds();
        let keys = receiver.receive(&request.source_url, now).await.map_err(|error| RpcError::from_user_facing(&error))?;
        if !self.kms.store.backend().whole_root().map_err(no_whole_root)?.is(&keys.root) {
            let cause = "the KMS at that address has another root";
            return Err(RpcError::new("kms/other-root", cause, "give the address of a replica of this KMS"));
        }
        let theirs = keys.epochs.ok_or_else(|| RpcError::internal("the answer has no epochs"))?;
        self.change(now, |epochs| epochs.merge(theirs).map(|_| ()))
    }

    async fn create_recovery(&self, _: Caller, request: CreateRecoveryRequest) -> Result<CreateRecoveryResponse, RpcError> {
        let store = &self.kms.store;
        let share_files = recovery::create(&store.backend(), &request, unix_seconds())?;
        tracing::warn!(target: "dstack_kms::audit", threshold = request.threshold, custodians = ?request.recipients, "recovery shares made");
        Ok(CreateRecoveryResponse { share_files })
    }

    async fn open_drill(&self, _: Caller, _: Empty) -> Result<RecoverySession, RpcError> {
        let (introduction, digest) = {
            let mut slot = self.drill.lock().unwrap_or_else(PoisonError::into_inner);
            let session = Session::open(&mut slot);
            (session.introduce(), session.digest())
        };
        let signature = self.kms.store.backend().sign(&digest).await.map_err(|error| RpcError::internal(error.to_string()))?;
        Ok(RecoverySession { signature: signature.to_vec(), ..introduction })
    }

    async fn submit_drill_share(&self, _: Caller, request: SubmitShareRequest) -> Result<ShareStatus, RpcError> {
        let mut slot = self.drill.lock().unwrap_or_else(PoisonError::into_inner);
        let store = &self.kms.store;
        let (status, recovered) = Session::submit(&mut slot, &request, Some(store.root.spki_der()))?;
        if let Some(recovered) = recovered {
            if !store.backend().whole_root().map_err(no_whole_root)?.is(&recovered.root) {
                return Err(RpcError::new(
                    "kms/recovery-other-root",
                    "the shares give another root",
                    "make new shares with dstack kms recovery create",
                ));
            }
            tracing::warn!(target: "dstack_kms::audit", shares = status.received, "recovery drill passed");
        }
        Ok(status)
    }
}

impl AdminCalls {
    /// Changes a copy, stores it, and only then lets it count.
    fn change(&self, now: u64, change: impl FnOnce(&mut Epochs) -> Result<(), EpochError>) -> Result<EpochList, RpcError> {
        let lock = &self.kms.store.epochs;
        let stored = lock.read().unwrap_or_else(PoisonError::into_inner).encode();
        let refused = |error: EpochError| RpcError::from_user_facing(&Refused(error));
        let mut copy = Epochs::decode(&stored).map_err(refused)?;
        change(&mut copy).map_err(refused)?;
        write_secret(&self.kms.own.dir, EPOCHS, &copy.encode(), &self.kms.own.vault).map_err(|error| RpcError::from_user_facing(&error))?;
        let answer = list(&copy, now);
        *lock.write().unwrap_or_else(PoisonError::into_inner) = copy;
        Ok(answer)
    }
}

/// Why epochs stay as they are.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Refused(EpochError);

impl UserFacing for Refused {
    fn code(&self) -> &'static str {
        match self.0 {
            EpochError::Pending { .. } => "kms/epoch-pending",
            EpochError::Fork { .. } => "kms/epoch-fork",
            _ => "kms/epochs",
        }
    }

    fn fix(&self) -> String {
        match self.0 {
            EpochError::Pending { .. } => "wait until the last rotation has started, or rotate with no delay next time",
            EpochError::Fork { .. } => "rotate on one replica only; restore epoch-seeds of one of the two from a backup",
            _ => "compare the request with the API reference",
        }
        .to_owned()
    }
}

fn list(epochs: &Epochs, now: u64) -> EpochList {
    let current = epochs.current(now).map(|epoch| epoch.number);
    let epochs = epochs.all().iter().map(|epoch| EpochInfo {
        epoch: epoch.number,
        state: match epoch.readable_until {
            _ if Some(epoch.number) == current => "current",
            _ if epoch.active_from > now => "announced",
            Some(end) if now >= end => "closed",
            _ => "readable",
        }
        .to_owned(),
        active_from: epoch.active_from,
        readable_until: epoch.readable_until.unwrap_or(0),
    });
    EpochList { epochs: epochs.collect() }
}
