//! The side that wants the keys.

use std::sync::Arc;

use dstack_api::{
    RpcError, UserFacing,
    kms::{Empty, GetKmsKeyRequest, GetTempCaCertResponse, KmsClient, KmsKeyResponse},
};
use dstack_attester::AttesterError;
use dstack_authorization::{Authorizer, Denial};
use dstack_key_hierarchy::{Epochs, K256Key, P256Key, RootKeys, Secret};
use dstack_ra_tls::{
    AuthorityError, CertKey, CertificateAuthority, EvidenceVerifier, KeyError, LeafProfile, RaTlsCertificate, Refusal, Validity,
    ra_tls_report_data,
    tls::{self, Identity},
    usage,
};
use dstack_rpc::{Client, Endpoint, EndpointError};
use rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

use super::transcript::Transcript;
use crate::{
    bootstrap::{NewKeys, Origin},
    tee::Tee,
};

/// Life of the certificate that is shown to the sender.
const CERTIFICATE_SECONDS: u64 = 3600;

/// Why no keys were received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReplicationError {
    #[error(transparent)]
    Address(#[from] EndpointError),
    #[error("this machine has no TEE, so no KMS can believe it")]
    NoTee,
    #[error("evidence of this machine")]
    Evidence(#[source] AttesterError),
    #[error("making a client certificate")]
    Authority(#[from] AuthorityError),
    #[error("making a certificate key")]
    Key(#[from] KeyError),
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
    #[error("the KMS at {url} answers: {error}")]
    Call { url: String, error: RpcError },
    #[error("the KMS at {url} is not believed")]
    Refused { url: String, source: Refusal },
    #[error("the KMS at {url} may not be a KMS of this system")]
    Denied { url: String, source: Denial },
    #[error("the answer of the KMS at {url} cannot be used: {reason}")]
    Answer { url: String, reason: &'static str },
    #[error("the keys are not signed by the KMS whose evidence came with them")]
    NotSigned,
}

impl UserFacing for ReplicationError {
    fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "kms/source-address",
            Self::NoTee => "kms/replica-without-tee",
            Self::Evidence(_) => "kms/own-evidence",
            Self::Authority(_) | Self::Key(_) | Self::Tls(_) => "kms/certificate",
            Self::Call { .. } => "kms/source-refuses",
            Self::Refused { .. } => "kms/source-not-believed",
            Self::Denied { .. } => "kms/source-not-allowed",
            Self::Answer { .. } => "kms/source-answer",
            Self::NotSigned => "kms/source-not-attested-peer",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Address(_) => "give the address of a KMS, such as https://kms.example.com:8000",
            Self::NoTee => "run the replica in a TEE, or copy cert_dir of a test system by hand",
            Self::Evidence(_) => "repair the TEE's quoting service",
            Self::Authority(_) | Self::Key(_) | Self::Tls(_) => "read the log; this is a defect worth reporting",
            Self::Call { .. } => "do what the other KMS says; the reason for a denial is in its log",
            Self::Refused { .. } => "check the address and what lies between; the other KMS must run in a TEE",
            Self::Denied { .. } => "allow the other KMS's measurement in this KMS's policy, or use another address",
            Self::Answer { .. } => "use a KMS of this release as the source",
            Self::NotSigned => "do not use this network path: somebody stands between this KMS and the other",
        }
        .to_owned()
    }
}

/// Fetches keys for this machine.
pub(crate) struct Receiver<'a> {
    pub(crate) tee: &'a Tee,
    pub(crate) verification: &'a Arc<EvidenceVerifier>,
    pub(crate) authorizer: &'a Authorizer,
}

impl Receiver<'_> {
    /// The keys of the KMS at `url`.
    pub(crate) async fn receive(&self, url: &str, now: u64) -> Result<NewKeys, ReplicationError> {
        let endpoint = Endpoint::parse_service(url)?;
        let call_error = |error| ReplicationError::Call { url: url.to_owned(), error };
        // What this first answer says is worth nothing by itself; it only makes the certificate acceptable to the other's TLS.
        let plain = KmsClient(Client::new(endpoint.clone()).with_tls(tls::danger_unverified_client()?));
        let authorities = plain.get_temp_ca_cert(&Empty {}).await.map_err(call_error)?;
        let identity = self.identity(&authorities, now)?;
        let leaf = identity.chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        let request = GetKmsKeyRequest { nonce: nonce.to_vec(), ..GetKmsKeyRequest::default() };
        let config = tls::attested_client(self.verification, Some(&identity))?;
        let source = KmsClient(Client::new(endpoint).with_tls(config));
        let mut answer = source.get_kms_key(&request).await;
        // A handshake cannot wait for collateral.
        if answer.is_err() && self.verification.fetch_wanted().await {
            answer = source.get_kms_key(&request).await;
        }
        let answer = answer.map_err(call_error)?;
        let transcript = Transcript { nonce: &nonce, receiver: &leaf, sender: &answer.sender_certificate, answer: &answer };
        self.judge(url, &transcript, now).await?;
        unpack(url, &answer)
    }

    fn identity(&self, authorities: &GetTempCaCertResponse, now: u64) -> Result<Identity, ReplicationError> {
        let authority = CertificateAuthority::load(&authorities.temp_ca_cert, CertKey::from_pem(&authorities.temp_ca_key)?)?;
        let key = CertKey::generate()?;
        let spki = key.spki_der();
        let evidence = self.tee.attest(&ra_tls_report_data(&spki)).map_err(ReplicationError::Evidence)?.ok_or(ReplicationError::NoTee)?;
        let leaf = authority.issue_leaf(&spki, &LeafProfile::guest_client(evidence), Validity::starting(now, CERTIFICATE_SECONDS))?;
        Ok(Identity { chain: vec![leaf], key })
    }

    /// Evidence, policy, signature: of one and the same certificate.
    async fn judge(&self, url: &str, transcript: &Transcript<'_>, now: u64) -> Result<(), ReplicationError> {
        if transcript.sender.is_empty() || transcript.answer.signature.is_empty() {
            return Err(answer_error(url, "it is not signed"));
        }
        let refused = |source| ReplicationError::Refused { url: url.to_owned(), source };
        let evidence = self.verification.of_certificate(transcript.sender, "", now).await.map_err(refused)?;
        self.authorizer.authorize_kms(&evidence).await.map_err(|source| ReplicationError::Denied { url: url.to_owned(), source })?;
        let certificate = RaTlsCertificate::parse(transcript.sender).map_err(|error| refused(error.into()))?;
        if certificate.usage() != Some(usage::KMS_RPC) {
            return Err(answer_error(url, "its certificate is not one of a KMS"));
        }
        if !transcript.is_signed_by(certificate.spki_der()) {
            return Err(ReplicationError::NotSigned);
        }
        Ok(())
    }
}

fn unpack(url: &str, answer: &KmsKeyResponse) -> Result<NewKeys, ReplicationError> {
    let unusable = |reason| answer_error(url, reason);
    let [keys] = answer.keys.as_slice() else { return Err(unusable("it does not have exactly one set of keys")) };
    let pem = Zeroizing::new(keys.ca_key.clone());
    let ca = P256Key::from_pkcs8_pem(&pem).map_err(|_| unusable("its root key is not a P-256 key"))?;
    let k256 = Secret::from_slice(&keys.k256_key).map_err(|_| unusable("its k256 key has not 32 bytes"))?;
    let k256 = K256Key::from_scalar(&k256).map_err(|_| unusable("its k256 key is not one"))?;
    let temp = CertKey::from_pem(&answer.temp_ca_key).map_err(|_| unusable("its temporary key is not a P-256 key"))?;
    let epochs = Epochs::decode(&answer.epochs).map_err(|_| unusable("its epochs cannot be read"))?;
    Ok(NewKeys { root: RootKeys { ca, k256 }, temp, epochs: Some(epochs), origin: Origin::Brought(None) })
}

fn answer_error(url: &str, reason: &'static str) -> ReplicationError {
    ReplicationError::Answer { url: url.to_owned(), reason }
}
