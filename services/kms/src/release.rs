//! The only door to app keys.

use dstack_api::kms::{AppKeyResponse, EpochKeys, PublicKeyResponse, SignCertResponse};
use dstack_attestation::{MrScope, VerifiedEvidence};
use dstack_authorization::AuthorizedBoot;
use dstack_manifest::{AppId, InstanceId};
use dstack_ra_tls::{AppInfo, AuthorityError, KeyError, LeafProfile, Validity};

use crate::{
    key_backend::{EpochKeySet, KeyBackend as _, KeyBackendError, SignedEnvKey},
    key_store::{KeyStore, cert_key},
};

/// Our own failure while making keys or certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReleaseError {
    #[error(transparent)]
    Backend(#[from] KeyBackendError),
    #[error("making a certificate key")]
    CertKey(#[from] KeyError),
    #[error("making a certificate")]
    Authority(#[from] AuthorityError),
}

/// The keys of an authorized boot.
pub(crate) async fn release_keys(store: &KeyStore, boot: &AuthorizedBoot) -> Result<AppKeyResponse, ReleaseError> {
    let keys = store.backend().app_keys(boot.app_id(), boot.instance_id()).await?;
    let gateway_app_id = boot.gateway_app_id().map(AppId::to_string).unwrap_or_default();
    Ok(AppKeyResponse {
        ca_cert: store.root.certificate_pem().to_owned(),
        disk_crypt_key: keys.disk_crypt_key.expose().to_vec(),
        env_crypt_key: keys.env_crypt_key.as_ref().map(|key| key.secret().expose().to_vec()).unwrap_or_default(),
        k256_key: keys.k256_key.scalar().expose().to_vec(),
        k256_signature: keys.k256_signature.map(|signature| signature.to_vec()).unwrap_or_default(),
        // The name of the gateway in older clients.
        tproxy_app_id: gateway_app_id.clone(),
        gateway_app_id,
        os_image_hash: boot.os_image_hash().as_bytes().to_vec(),
        release_proof: String::new(),
        epoch_keys: Vec::new(),
    })
}

/// The keys of an authorized boot by the separated scheme: those of the current epoch, and beside them those of each readable one.
pub(crate) async fn release_separated_keys(store: &KeyStore, boot: &AuthorizedBoot, now: u64) -> Result<AppKeyResponse, ReleaseError> {
    let mut answer = release_keys(store, boot).await?;
    let sets = store.backend().epoch_keys(boot.app_id(), boot.instance_id(), now).await?;
    answer.epoch_keys = sets.iter().map(epoch_keys).collect();
    if let Some(current) = answer.epoch_keys.iter().find(|keys| keys.is_current) {
        answer.disk_crypt_key = current.disk_crypt_key.clone();
        answer.env_crypt_key = current.env_crypt_key.clone();
        answer.k256_key = current.k256_key.clone();
        answer.k256_signature = current.k256_signature.clone();
    }
    Ok(answer)
}

fn epoch_keys(set: &EpochKeySet) -> EpochKeys {
    EpochKeys {
        epoch: set.keys.epoch,
        is_current: set.is_current,
        readable_until: set.readable_until.unwrap_or(0),
        disk_crypt_key: set.keys.disk_crypt_key.expose().to_vec(),
        env_crypt_key: set.keys.env_crypt_key.secret().expose().to_vec(),
        k256_key: set.keys.k256_key.scalar().expose().to_vec(),
        k256_signature: set.k256_signature.to_vec(),
    }
}

/// What owners seal an app's environment to, signed with and without the time `now` (Unix seconds).
pub(crate) async fn env_public_key(store: &KeyStore, app_id: &AppId, now: u64) -> Result<PublicKeyResponse, ReleaseError> {
    Ok(public_key(store.backend().env_key(app_id, now).await?, now))
}

/// What owners seal an instance's environment to, by the separated scheme. `epoch`: 0 for the current one.
pub(crate) async fn separated_env_public_key(
    store: &KeyStore,
    app_id: &AppId,
    instance_id: &InstanceId,
    epoch: u32,
    now: u64,
) -> Result<PublicKeyResponse, ReleaseError> {
    Ok(public_key(store.backend().epoch_env_key(app_id, instance_id, epoch, now).await?, now))
}

fn public_key(key: SignedEnvKey, now: u64) -> PublicKeyResponse {
    PublicKeyResponse {
        public_key: key.public_key.to_vec(),
        signature: key.signature.map(|signature| signature.to_vec()).unwrap_or_default(),
        timestamp: now,
        signature_v1: key.timed_signature.to_vec(),
        epoch: key.epoch,
    }
}

/// A certificate under the boot's own app authority. `profile` went through the certificate policy.
pub(crate) async fn issue_certificate(
    store: &KeyStore,
    boot: &AuthorizedBoot,
    spki: &[u8],
    profile: &LeafProfile,
    validity: Validity,
) -> Result<SignCertResponse, ReleaseError> {
    let key = cert_key(&store.backend().app_ca_key(boot.app_id()).await?)?;
    let authority = store.root.issue_app_ca(boot.app_id(), key, validity)?;
    let leaf = authority.issue_leaf(spki, profile, validity)?;
    let certificate_chain = vec![pem_of(&leaf), authority.certificate_pem().to_owned(), store.root.certificate_pem().to_owned()];
    Ok(SignCertResponse { certificate_chain, release_proof: String::new() })
}

/// What the certificate says about the app, all of it from verified evidence.
pub(crate) fn app_info(evidence: &VerifiedEvidence, boot: &AuthorizedBoot) -> AppInfo {
    let bytes = |bytes: &[u8]| bytes.to_vec().into();
    AppInfo {
        app_id: bytes(boot.app_id().as_bytes()),
        compose_hash: bytes(boot.compose_hash().as_bytes()),
        instance_id: bytes(boot.instance_id().as_bytes()),
        device_id: bytes(&evidence.device_id()),
        mr_system: bytes(&evidence.mr_system(MrScope::Runtime)),
        mr_aggregated: bytes(&evidence.mr_aggregated(MrScope::Runtime).unwrap_or_default()),
        os_image_hash: bytes(boot.os_image_hash().as_bytes()),
        key_provider_info: bytes(evidence.claims().key_provider.as_ref().map_or(&[], |provider| provider.raw.as_slice())),
        init_script_hashes: None,
    }
}

/// PEM of a certificate.
pub(crate) fn pem_of(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
