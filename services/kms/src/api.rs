//! The calls. Each converts and delegates.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_api::{
    Dispatch, Payload, RpcError, UserFacing as _,
    kms::{
        AppId as AppIdMessage, AppKeyResponse, BootstrapResponse, Empty, GetAppKeyRequest, GetKmsKeyRequest, GetMetaResponse,
        GetTempCaCertResponse, KmsKeyResponse, KmsRpc, KmsServer, PublicKeyResponse, SignCertRequest, SignCertResponse,
    },
};
use dstack_attestation::{Attestation, MrScope, VerifiedEvidence};
use dstack_authorization::{AuthorizedBoot, AuthorizedKms, Authorizer};
use dstack_manifest::{AppId, InstanceId};
use dstack_ra_tls::{CertRequest, EvidenceVerifier, LeafProfile, RaTlsCertificate, Refusal as PeerRefusal, RequestBody};
use dstack_rpc::Caller;
use dstack_service::clock::unix_seconds;

use crate::{
    audit::{Audit, Call},
    cert_policy::CertificateRules,
    key_backend::{KeyBackend as _, KeyBackendError, no_whole_root},
    key_store::KeyStore,
    nonce::NonceIssuer,
    rate_limit::RateLimiter,
    release::{self, ReleaseError},
    release_log::ReleaseLogError,
    replication::{SendError, Sender},
    sealing::Vault,
    self_authorization::SelfAuthorization,
    tee::Tee,
    verification::{self, Refusal},
};

/// The service behind the calls.
pub struct Kms {
    pub(crate) store: KeyStore,
    pub(crate) authorizer: Authorizer,
    pub(crate) verification: Arc<EvidenceVerifier>,
    pub(crate) rules: CertificateRules,
    pub(crate) audit: Audit,
    pub(crate) own: OwnKeys,
    /// None where the configuration takes the check away.
    pub(crate) itself: Option<SelfAuthorization>,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) nonces: NonceIssuer,
}

/// What the calls about this KMS's own keys need.
pub(crate) struct OwnKeys {
    /// `cert_dir`.
    pub(crate) dir: PathBuf,
    pub(crate) vault: Vault,
    pub(crate) tee: Tee,
    /// Leaf certificate of the HTTPS server, DER.
    pub(crate) leaf: Vec<u8>,
}

impl KmsRpc for Kms {
    type Caller = Caller;

    async fn get_app_key(&self, caller: Caller, request: GetAppKeyRequest) -> Result<AppKeyResponse, RpcError> {
        let call = Call { method: "GetAppKey", caller: &caller, started: Instant::now() };
        if request.api_version > 2 {
            return Err(unsupported_version(request.api_version));
        }
        let scheme = parse_scheme(&request.key_scheme)?;
        let verdict = verification::of_certificate(&self.verification, caller.tls_chain.first(), &request.vm_config, unix_seconds()).await;
        let age = if request.api_version == 2 { Some(self.age_of_evidence(&caller)?) } else { None };
        let (evidence, boot) = self.admit(&call, verdict, MrScope::Runtime, age).await?;
        let keys = match scheme {
            KeyScheme::Compatible => release::release_keys(&self.store, &boot).await,
            KeyScheme::Separated => release::release_separated_keys(&self.store, &boot, unix_seconds()).await,
        };
        let mut keys = keys.map_err(|error| own_failure(&call, &error))?;
        keys.release_proof = self.audit.released(&call, &boot, &evidence, MrScope::Runtime).await.map_err(unlogged)?;
        Ok(keys)
    }

    async fn get_kms_key(&self, caller: Caller, request: GetKmsKeyRequest) -> Result<KmsKeyResponse, RpcError> {
        let call = Call { method: "GetKmsKey", caller: &caller, started: Instant::now() };
        let leaf = caller.tls_chain.first();
        let verdict = verification::of_certificate(&self.verification, leaf, &request.vm_config, unix_seconds()).await;
        let evidence = verdict.map_err(|refusal| self.refuse(&call, &refusal, None))?;
        let allowed = self.authorizer.authorize_kms(&evidence).await.map_err(|denial| {
            self.audit.refused(&call, &denial, Some(&evidence));
            denial.for_attested_caller()
        })?;
        self.must_be_allowed_itself(&call, &evidence).await?;
        let answer = self.send_root(&allowed, &request, leaf.map(Vec::as_slice).unwrap_or_default())?;
        self.audit.root_released(&call, &evidence).await.map_err(unlogged)?;
        Ok(answer)
    }

    async fn get_app_env_encrypt_pub_key(&self, caller: Caller, request: AppIdMessage) -> Result<PublicKeyResponse, RpcError> {
        let app_id = AppId::try_from(request.app_id.as_slice())
            .map_err(|_| RpcError::new("kms/app-id", "app_id must be 20 bytes", "give the app id as 40 hex digits"))?;
        let call = Call { method: "GetAppEnvEncryptPubKey", caller: &caller, started: Instant::now() };
        let now = unix_seconds();
        let key = match parse_scheme(&request.key_scheme)? {
            KeyScheme::Compatible => release::env_public_key(&self.store, &app_id, now).await,
            KeyScheme::Separated => {
                let instance_id = InstanceId::try_from(request.instance_id.as_slice()).map_err(|_| {
                    RpcError::new("kms/instance-id", "instance_id must be 20 bytes or empty", "give the instance id as 40 hex digits")
                })?;
                release::separated_env_public_key(&self.store, &app_id, &instance_id, request.epoch, now).await
            }
        };
        key.map_err(|error| match error {
            ReleaseError::Backend(KeyBackendError::Epoch { .. }) => {
                RpcError::new("kms/epoch-not-readable", error.to_string(), "ask for the current epoch (0)")
            }
            error => own_failure(&call, &error),
        })
    }

    async fn get_meta(&self, _: Caller, _: Empty) -> Result<GetMetaResponse, RpcError> {
        let bootstrap_info = self.store.bootstrap_info.as_ref().map(|info| BootstrapResponse {
            ca_pubkey: info.ca_pubkey.clone(),
            k256_pubkey: info.k256_pubkey.clone(),
            attestation: info.attestation.clone(),
        });
        Ok(GetMetaResponse {
            ca_cert: self.store.root.certificate_pem().to_owned(),
            allow_any_upgrade: false,
            k256_pubkey: self.store.backend().k256_public_key().to_vec(),
            bootstrap_info,
            is_dev: self.authorizer.accepts_simulated(),
            gateway_app_id: self.authorizer.gateway_app_id().map(|id| id.to_string()),
            kms_contract_address: None,
            chain_id: None,
            app_auth_implementation: None,
        })
    }

    async fn get_temp_ca_cert(&self, _: Caller, _: Empty) -> Result<GetTempCaCertResponse, RpcError> {
        Ok(GetTempCaCertResponse {
            temp_ca_cert: self.store.temp.certificate_pem().to_owned(),
            // Public on purpose: a certificate under this authority is worth only the evidence in it.
            temp_ca_key: self.store.temp.key_pem().to_string(),
            ca_cert: self.store.root.certificate_pem().to_owned(),
            nonce: self.nonces.issue(unix_seconds()).to_vec(),
        })
    }

    async fn sign_cert(&self, caller: Caller, request: SignCertRequest) -> Result<SignCertResponse, RpcError> {
        let call = Call { method: "SignCert", caller: &caller, started: Instant::now() };
        let version = match request.api_version {
            1 => 1,
            2 => 2,
            other => return Err(unsupported_version(other)),
        };
        let now = unix_seconds();
        let csr = CertRequest::verify(version, &request.csr, &request.signature)
            .map_err(|error| self.refuse(&call, &PeerRefusal::from(error).into(), None))?;
        let verdict = verification::of_request(&self.verification, &csr, &request.vm_config, now).await;
        let (evidence, boot) = self.admit(&call, verdict, MrScope::BootTime, None).await?;
        let (mut profile, validity) = self.rules.apply(&csr.config, now, self.root_end()).map_err(|refusal| {
            self.audit.refused(&call, &refusal, Some(&evidence));
            RpcError::from_user_facing(&refusal)
        })?;
        self.add_facts(&mut profile, &csr, &boot, &evidence);
        let mut answer = release::issue_certificate(&self.store, &boot, &csr.pubkey, &profile, validity)
            .await
            .map_err(|error| own_failure(&call, &error))?;
        answer.release_proof = self.audit.released(&call, &boot, &evidence, MrScope::BootTime).await.map_err(unlogged)?;
        Ok(answer)
    }
}

impl Kms {
    /// The gates in order: evidence, policy, this KMS itself. Whoever fails is refused in the way it has earned.
    async fn admit(
        &self,
        call: &Call<'_>,
        verdict: Result<Arc<VerifiedEvidence>, Refusal>,
        scope: MrScope,
        age: Option<Duration>,
    ) -> Result<(Arc<VerifiedEvidence>, AuthorizedBoot), RpcError> {
        let evidence = verdict.map_err(|refusal| self.refuse(call, &refusal, None))?;
        if let Some(app_id) = evidence.claims().app_id {
            self.limiter.admit_app(&app_id)?;
        }
        match self.authorizer.authorize_app(&evidence, scope, age).await {
            Ok(boot) => {
                self.must_be_allowed_itself(call, &evidence).await?;
                Ok((evidence, boot))
            }
            Err(denial) => {
                self.audit.refused(call, &denial, Some(&evidence));
                Err(denial.for_attested_caller())
            }
        }
    }

    /// The last gate before keys. `evidence`: of the caller, who learns only that this KMS is out of order.
    async fn must_be_allowed_itself(&self, call: &Call<'_>, evidence: &VerifiedEvidence) -> Result<(), RpcError> {
        let Some(itself) = &self.itself else { return Ok(()) };
        itself.check(&self.own.tee, &self.verification, &self.authorizer).await.map_err(|refusal| {
            self.audit.refused(call, &refusal, Some(evidence));
            RpcError::new(refusal.code(), "KMS self authorization failed", "use another KMS of this root, or tell the operator of this one")
        })
    }

    /// How old the evidence in the caller's certificate can be, by the nonce that it binds. Worth something once that is verified.
    fn age_of_evidence(&self, caller: &Caller) -> Result<Duration, RpcError> {
        let leaf = caller.tls_chain.first().and_then(|leaf| RaTlsCertificate::parse(leaf).ok());
        let age = leaf.and_then(|leaf| self.nonces.age(leaf.nonce()?, unix_seconds()));
        age.ok_or_else(|| {
            let message = "version 2 needs a certificate with a nonce of this KMS";
            RpcError::new("kms/nonce", message, "put the nonce of GetTempCaCert into certificate and evidence, or call version 1")
        })
    }

    fn send_root(&self, allowed: &AuthorizedKms, request: &GetKmsKeyRequest, receiver: &[u8]) -> Result<KmsKeyResponse, RpcError> {
        let sender = Sender {
            backend: &self.store.backend(),
            temp_key_pem: &self.store.temp.key_pem(),
            leaf: &self.own.leaf,
            leaf_key: &self.store.rpc_key,
        };
        sender.send(allowed, request, receiver).map_err(|error| match error {
            SendError::Nonce { .. } => RpcError::bad_request(error.to_string()),
            SendError::Backend(error) => no_whole_root(error),
            _ => RpcError::internal(error.to_string()),
        })
    }

    fn refuse(&self, call: &Call<'_>, refusal: &Refusal, evidence: Option<&VerifiedEvidence>) -> RpcError {
        self.audit.refused(call, refusal, evidence);
        refusal.for_client(&call.caller.request_id)
    }

    fn add_facts(&self, profile: &mut LeafProfile, csr: &CertRequest, boot: &AuthorizedBoot, evidence: &VerifiedEvidence) {
        profile.app_id = Some(*boot.app_id());
        if csr.config.ext_app_info {
            profile.app_info = Some(release::app_info(evidence, boot).encode());
        }
        if let (true, RequestBody::V2 { attestation }) = (csr.config.ext_quote, &csr.body) {
            profile.attestation = Attestation::decode(attestation).ok().map(|envelope| envelope.stripped().encode());
        }
    }

    fn root_end(&self) -> u64 {
        let root = RaTlsCertificate::parse(self.store.root.certificate_der());
        root.ok().and_then(|root| u64::try_from(root.not_after()).ok()).unwrap_or(0)
    }
}

/// By which derivations keys are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyScheme {
    /// As every client knows them.
    Compatible,
    /// Our own, with epochs.
    Separated,
}

fn parse_scheme(name: &str) -> Result<KeyScheme, RpcError> {
    match name {
        "" | "compatible" => Ok(KeyScheme::Compatible),
        "separated" => Ok(KeyScheme::Separated),
        _ => Err(RpcError::new("kms/key-scheme", "key_scheme is neither \"compatible\" nor \"separated\"", "use one of the two")),
    }
}

fn unsupported_version(version: u32) -> RpcError {
    RpcError::new("kms/api-version", format!("Unsupported API version: {version}"), "use a version that the API reference lists")
}

/// Nothing leaves that is not in the log; why it cannot be is the operator's to read.
fn unlogged(error: ReleaseLogError) -> RpcError {
    let message = "the release cannot be logged, so nothing is released";
    RpcError::new(error.code(), message, "try again; the operator of the KMS finds the reason in its log")
}

fn own_failure(call: &Call<'_>, error: &ReleaseError) -> RpcError {
    tracing::error!(method = call.method, request_id = call.caller.request_id, error = ?error, "keys or certificate could not be made");
    RpcError::internal(error.to_string())
}

/// The KMS calls, and where the neighbouring services are.
pub(crate) struct KmsDispatch(pub(crate) KmsServer<Kms>);

impl Dispatch for KmsDispatch {
    type Caller = Caller;
    const SERVICE: &'static str = "KMS";

    async fn dispatch(&self, caller: Caller, method: &str, input: Payload) -> Result<Vec<u8>, RpcError> {
        match method {
            "ClearImageCache" => Err(admin_elsewhere(method)),
            _ if method.starts_with("Admin.") => Err(admin_elsewhere(method)),
            "Bootstrap" => Err(RpcError::new("kms/keys-exist", "KMS has already been bootstrapped", "use the keys that are there")),
            "Onboard" => Err(RpcError::new("kms/keys-exist", "KMS has already been onboarded", "use the keys that are there")),
            "GetAttestationInfo" | "Finish" => Err(onboarding_over()),
            _ if method.starts_with("Onboard.") => Err(onboarding_over()),
            _ => self.0.dispatch(caller, method, input).await,
        }
    }
}

fn admin_elsewhere(method: &str) -> RpcError {
    let cause = format!("{} is an admin call and not served here", method.chars().take(64).collect::<String>());
    RpcError::new("kms/admin-elsewhere", cause, "set admin.listen and admin.token_file, and call that address")
}

fn onboarding_over() -> RpcError {
    RpcError::new("kms/onboarding-over", "this KMS has keys: its onboarding is over", "read them and the evidence over them with GetMeta")
}
