//! A KMS whose root certificate is known.

mod args;
mod operate;

use std::{path::Path, sync::Arc};

use dstack_api::{
    RpcError,
    kms::{AppId as WireAppId, GetMetaResponse, KmsClient},
};
use dstack_attestation::parse_certificate;
use dstack_key_hierarchy::{EnvPublicKey, verify_env_key_v1};
use dstack_manifest::AppId;
use dstack_rpc::{Client, Endpoint};
use rustls_pki_types::CertificateDer;

pub(crate) use args::KmsCommand;
pub(crate) use operate::operate;

use crate::failure::{Failure, Outcome};

/// Client of a KMS; every answer comes from a server whose certificate ends in the root.
#[derive(Debug, Clone)]
pub(crate) struct Kms {
    client: KmsClient<Client>,
    root: CertificateDer<'static>,
    url: String,
}

impl Kms {
    /// Pins the KMS at `url` to the root certificate in the PEM file `ca`. Nothing is contacted yet.
    ///
    /// Errors: the address or the certificate cannot be read.
    pub(crate) fn connect(url: &str, ca: &Path) -> Outcome<Self> {
        let root = read_certificate(ca)?;
        let tls = dstack_ra_tls::tls::pinned_client(&root, dstack_ra_tls::usage::KMS_RPC, None);
        let tls = tls.map_err(|error| {
            Failure::new("kms/bad-ca", format!("{}: {error}", ca.display()), "name the PEM file of the KMS's root certificate")
        })?;
        let endpoint = Endpoint::parse_service(url)?;
        Ok(Self { client: KmsClient(Client::new(endpoint).with_tls(Arc::new(tls))), root, url: url.to_owned() })
    }

    /// For what it serves beside its calls.
    #[must_use]
    pub(crate) fn http(&self) -> &Client {
        &self.client.0
    }

    /// What the KMS says about itself.
    ///
    /// Errors: not reachable, or another KMS.
    pub(crate) async fn meta(&self) -> Outcome<GetMetaResponse> {
        self.client.get_meta(&Default::default()).await.map_err(|error| self.explain(error))
    }

    /// An error of the KMS's; that it cannot be reached is said in its own name.
    fn explain(&self, error: RpcError) -> Failure {
        if error.code != RpcError::UNREACHABLE {
            return Failure::rpc(error);
        }
        let fix = format!("start the KMS at {} (`dstack up` does for a local stack), or check --kms-url", self.url);
        Failure::new("kms/unreachable", error.message, fix)
    }

    /// `key_provider_id` of apps that rely on this KMS: hex SPKI DER of its root.
    ///
    /// Errors: the root certificate is malformed.
    pub(crate) fn provider_id(&self) -> Outcome<String> {
        spki(&self.root)
            .map(hex::encode)
            .ok_or_else(|| Failure::new("kms/bad-ca", "the root certificate of the KMS is malformed", "fetch it again"))
    }

    /// The key that secrets of `app_id` are sealed to, with the KMS's fresh signature verified.
    ///
    /// Errors: not reachable, or a signature that is not this KMS's.
    pub(crate) async fn env_key(&self, app_id: &AppId) -> Outcome<EnvPublicKey> {
        let meta = self.meta().await?;
        let request = WireAppId { app_id: app_id.as_bytes().to_vec(), ..WireAppId::default() };
        let answer = self.client.get_app_env_encrypt_pub_key(&request).await.map_err(|error| self.explain(error))?;
        let refuse = |what: String| {
            Failure::new(
                "kms/bad-env-key",
                format!("the KMS at {} {what}", self.url),
                "do not send secrets; check that --kms-url and --kms-ca belong together",
            )
        };
        let signer: [u8; 33] = meta.k256_pubkey.as_slice().try_into().map_err(|_| refuse("gave a malformed signing key".into()))?;
        let key: EnvPublicKey = answer.public_key.as_slice().try_into().map_err(|_| refuse("gave a malformed encryption key".into()))?;
        let now = dstack_service::clock::unix_seconds();
        verify_env_key_v1(app_id, (&key, answer.timestamp), &answer.signature_v1, &signer, now)
            .map_err(|error| refuse(format!("gave an encryption key that cannot be trusted: {error}")))?;
        Ok(key)
    }
}

/// A certificate from a PEM or DER file.
///
/// Errors: unreadable, or not a certificate.
pub(crate) fn read_certificate(path: &Path) -> Outcome<CertificateDer<'static>> {
    let bytes = std::fs::read(path).map_err(|error| Failure::io("reading", path, &error))?;
    let malformed = |error| {
        Failure::new(
            "cli/bad-certificate",
            format!("{} is no certificate: {error}", path.display()),
            "name a file with one PEM or DER certificate",
        )
    };
    parse_certificate(&bytes).map(CertificateDer::from).map_err(malformed)
}

/// Subject public key info, DER.
#[must_use]
pub(crate) fn spki(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}
