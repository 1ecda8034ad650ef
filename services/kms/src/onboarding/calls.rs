//! The calls of `Onboard`.

use std::sync::{Arc, Mutex, PoisonError};

use dstack_api::{
    RpcError,
    kms::{
        AttestationInfoResponse, BootstrapRequest, BootstrapResponse, Empty, OnboardRequest, OnboardResponse, OnboardRpc, RecoverySession,
        ShareStatus, SubmitShareRequest,
    },
};
use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_key_hierarchy::RecoveredRoot;
use dstack_ra_tls::CertKey;
use dstack_rpc::Caller;
use dstack_service::clock::unix_seconds;
use tokio::sync::Notify;

use crate::{
    bootstrap::{NewKeys, Origin, Site},
    config::Settings,
    domain::Domain,
    key_store::KeyStore,
    machine::Machine,
    recovery::Session,
    replication,
    self_authorization::{self, SelfRefusal, padded},
};

/// Report data of the evidence that only tells who this machine is.
const INTRODUCTION: &[u8] = b"dstack-kms: attestation info";

/// The state of one onboarding.
pub(crate) struct Onboarding {
    pub(crate) settings: Settings,
    pub(crate) machine: Machine,
    /// One decision at a time.
    pub(crate) busy: tokio::sync::Mutex<()>,
    pub(crate) finished: Notify,
    pub(crate) is_finished: Mutex<bool>,
    /// Custodians that bring the root back.
    pub(crate) restore: Mutex<Option<Session>>,
    pub(crate) restore_domain: Mutex<Option<Domain>>,
}

impl OnboardRpc for Onboarding {
    type Caller = Caller;

    async fn bootstrap(&self, _: Caller, request: BootstrapRequest) -> Result<BootstrapResponse, RpcError> {
        let _turn = self.busy.lock().await;
        let domain = parse_domain(&request.domain)?;
        self.refuse_second("KMS has already been bootstrapped")?;
        self.check_own_boot().await?;
        let keys = NewKeys::generate().map_err(|error| RpcError::from_user_facing(&error))?;
        let store = self.store(&domain, &keys)?;
        let info = store.bootstrap_info.ok_or_else(|| RpcError::internal("the record of the bootstrap is missing"))?;
        Ok(BootstrapResponse { ca_pubkey: info.ca_pubkey, k256_pubkey: info.k256_pubkey, attestation: info.attestation })
    }

    async fn onboard(&self, _: Caller, request: OnboardRequest) -> Result<OnboardResponse, RpcError> {
        let _turn = self.busy.lock().await;
        let domain = parse_domain(&request.domain)?;
        self.refuse_second("KMS has already been onboarded")?;
        self.check_own_boot().await?;
        let peer = replication::Receiver {
            tee: &self.machine.tee,
            verification: &self.machine.verification,
            authorizer: &self.machine.authorizer,
        };
        let keys = peer.receive(&request.source_url, unix_seconds()).await.map_err(|error| RpcError::from_user_facing(&error))?;
        let store = self.store(&domain, &keys)?;
        Ok(OnboardResponse { k256_pubkey: store.keys.k256.public_key().to_vec() })
    }

    async fn get_attestation_info(&self, _: Caller, _: Empty) -> Result<AttestationInfoResponse, RpcError> {
        self.attestation_info().await
    }

    async fn finish(&self, _: Caller, _: Empty) -> Result<Empty, RpcError> {
        self.finish_now()?;
        Ok(Empty {})
    }

    async fn open_restore(&self, _: Caller, request: BootstrapRequest) -> Result<RecoverySession, RpcError> {
        let domain = parse_domain(&request.domain)?;
        self.refuse_second("KMS has already been bootstrapped")?;
        let (session, digest) = {
            let mut slot = self.restore.lock().unwrap_or_else(PoisonError::into_inner);
            let session = Session::open(&mut slot);
            (session.introduce(), session.digest())
        };
        *self.restore_domain.lock().unwrap_or_else(PoisonError::into_inner) = Some(domain);
        let attestation = self.machine.tee.attest(&padded(&digest)).map_err(|error| RpcError::from_user_facing(&error))?;
        Ok(RecoverySession { attestation: attestation.unwrap_or_default(), ..session })
    }

    async fn submit_restore_share(&self, _: Caller, request: SubmitShareRequest) -> Result<ShareStatus, RpcError> {
        let _turn = self.busy.lock().await;
        self.refuse_second("KMS has already been bootstrapped")?;
        self.check_own_boot().await?;
        let (status, recovered) = {
            let mut slot = self.restore.lock().unwrap_or_else(PoisonError::into_inner);
            Session::submit(&mut slot, &request, None)?
        };
        let Some(RecoveredRoot { root, epochs }) = recovered else { return Ok(status) };
        let domain = self.restore_domain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let temp = CertKey::generate().map_err(|error| RpcError::internal(error.to_string()))?;
        let keys = NewKeys { root, temp, epochs: Some(epochs), origin: Origin::Brought(None) };
        self.store(&domain.unwrap_or_else(|| self.settings.first_domain()), &keys)?;
        tracing::warn!(target: "dstack_kms::audit", shares = status.received, "root restored from shares");
        Ok(status)
    }
}

impl Onboarding {
    /// The public key and the record, once there are keys.
    pub(crate) fn present(&self) -> Result<Option<KeyStore>, RpcError> {
        let loaded = self.at(&self.settings.first_domain(), |site| site.load());
        loaded.map_err(|error| RpcError::from_user_facing(&error))
    }

    pub(crate) fn finish_now(&self) -> Result<(), RpcError> {
        if self.present()?.is_none() {
            let cause = "this KMS has no keys yet";
            return Err(RpcError::new("kms/not-onboarded", cause, "bootstrap it, or onboard it from a replica, and finish then"));
        }
        *self.is_finished.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.finished.notify_waiters();
        self.finished.notify_one();
        Ok(())
    }

    pub(crate) async fn attestation_info(&self) -> Result<AttestationInfoResponse, RpcError> {
        let site_name = self.settings.file.onboard.site_name.clone();
        let Some(evidence) = self.own_evidence().await? else {
            return Ok(AttestationInfoResponse { tee_variant: "none".to_owned(), site_name, ..AttestationInfoResponse::default() });
        };
        Ok(AttestationInfoResponse {
            device_id: evidence.device_id().to_vec(),
            mr_aggregated: evidence.mr_aggregated(MrScope::Runtime).map(|digest| digest.to_vec()).unwrap_or_default(),
            os_image_hash: evidence.os_image_hash().map(|hash| hash.as_bytes().to_vec()).unwrap_or_default(),
            tee_variant: evidence.tee_variant().to_owned(),
            site_name,
            ppid: evidence.platform().hardware_id().unwrap_or_default().to_vec(),
            ..AttestationInfoResponse::default()
        })
    }

    /// This machine's verified evidence; none without a TEE.
    async fn own_evidence(&self) -> Result<Option<Arc<VerifiedEvidence>>, RpcError> {
        let Machine { tee, verification, .. } = &self.machine;
        let evidence = self_authorization::own_evidence(tee, verification, &padded(INTRODUCTION)).await;
        evidence.map_err(|refusal| match &refusal {
            SelfRefusal::Attest(error) => RpcError::from_user_facing(error),
            SelfRefusal::Evidence(error) => RpcError::from_user_facing(error),
            SelfRefusal::Policy(_) => RpcError::from_user_facing(&refusal),
        })
    }

    /// Keys are made or received only where the policy would accept this machine as a KMS.
    async fn check_own_boot(&self) -> Result<(), RpcError> {
        let Some(evidence) = self.own_evidence().await? else { return Ok(()) };
        let Err(denial) = self.machine.authorizer.authorize_kms(&evidence).await else { return Ok(()) };
        let mut error = RpcError::from_user_facing(&denial);
        error.message = format!("KMS self authorization failed: KMS is not allowed: {}", error.message);
        Err(error)
    }

    fn refuse_second(&self, message: &str) -> Result<(), RpcError> {
        match self.present()? {
            None => Ok(()),
            Some(_) => Err(RpcError::new("kms/keys-exist", message, "finish the onboarding; the keys that are there are used")),
        }
    }

    fn store(&self, domain: &Domain, keys: &NewKeys) -> Result<KeyStore, RpcError> {
        self.at(domain, |site| site.create(keys)).map_err(|error| RpcError::from_user_facing(&error))
    }

    fn at<T>(&self, domain: &Domain, act: impl FnOnce(&Site<'_>) -> T) -> T {
        self.machine.at(&self.settings.file.cert_dir, domain, unix_seconds(), act)
    }
}

fn parse_domain(text: &str) -> Result<Domain, RpcError> {
    text.parse().map_err(|error: crate::domain::DomainError| {
        RpcError::new(
            "kms/domain",
            format!("domain {:?}: {error}", dstack_service::text::clean(text, 300)),
            "give the DNS name of this KMS",
        )
    })
}
