//! Fresh keys with certificates: signed by the KMS, or by the application's own authority where there is no KMS.

use std::sync::Arc;

use dstack_api::{RpcError, kms::SignCertRequest};
use dstack_attestation::{UnverifiedQuote, mr_aggregated, mr_system};
use dstack_attester::Quoted;
use dstack_ra_tls::{
    AppInfo, CertConfig, CertKey, CertRequest, CertificateAuthority, LeafProfile, RaTlsCertificate, RequestBody, Validity,
    ra_tls_report_data, usage,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{
    application::Application,
    evidence::{Asker, EvidenceDesk},
    tcb_info::device_id,
};
use crate::{
    app_keys::ProviderDocument,
    boot::keys::MrConfigIdCheck,
    kms_client::{EvidenceRefusal, KmsAttemptError, KmsDirectory, KmsIdentity, KmsSession, validity},
    kms_trust::KmsTrust,
};

const MAX_NAMES: usize = 64;
const MAX_NAME_BYTES: usize = 253;

/// A key, PKCS#8 PEM, with its chain, PEM, leaf first.
pub(crate) struct IssuedKey {
    pub(crate) key: Zeroizing<String>,
    pub(crate) chain: Vec<String>,
}

/// Issues keys with certificates.
pub(crate) struct TlsDesk {
    application: Arc<Application>,
    evidence: Arc<EvidenceDesk>,
    /// The KMS that answered last: saves the handshake, and is given up at the first failure.
    session: Mutex<Option<Arc<KmsSession>>>,
}

impl std::fmt::Debug for TlsDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsDesk(..)")
    }
}

impl TlsDesk {
    pub(crate) fn new(application: Arc<Application>, evidence: Arc<EvidenceDesk>) -> Self {
        Self { application, evidence, session: Mutex::new(None) }
    }

    /// A new key with a certificate as `config` asks for.
    ///
    /// Errors: a request that makes no sense, no quote, or no KMS that signs.
    pub(crate) async fn issue(&self, config: CertConfig) -> Result<IssuedKey, RpcError> {
        check(&config)?;
        let key = CertKey::generate().map_err(internal)?;
        let quoted = self.evidence.quote(ra_tls_report_data(&key.spki_der()), Asker::Inside).await?;
        let chain = match &self.application.document.key_provider {
            ProviderDocument::None { key: authority_key } => self.sign_locally(authority_key, &key, config, &quoted)?,
            ProviderDocument::Kms { url, pubkey, .. } => self.sign_by_kms(url, pubkey, &key, config, &quoted).await?,
        };
        Ok(IssuedKey { key: key.to_pem(), chain })
    }

    fn sign_locally(&self, authority_key: &str, key: &CertKey, config: CertConfig, quoted: &Quoted) -> Result<Vec<String>, RpcError> {
        let application = &self.application;
        let authority = CertificateAuthority::load(&application.document.ca_cert, CertKey::from_pem(authority_key).map_err(internal)?)
            .map_err(internal)?;
        let default = validity();
        let validity = Validity {
            not_before: config.not_before.unwrap_or(default.not_before),
            not_after: config.not_after.unwrap_or(default.not_after),
        };
        let profile = LeafProfile {
            org_name: config.org_name,
            common_name: config.subject,
            subject_alt_names: config.subject_alt_names,
            usage: Some(usage::APP_CUSTOM.to_owned()),
            app_id: Some(application.app_id),
            attestation: config.ext_quote.then(|| quoted.attestation.stripped().encode()),
            app_info: if config.ext_app_info { Some(app_info(application, quoted)?.encode()) } else { None },
            server_auth: config.usage_server_auth,
            client_auth: config.usage_client_auth,
            nonce: None,
        };
        let refused =
            |error: dstack_ra_tls::AuthorityError| RpcError::new("agent/certificate-request", chain_of(&error), "correct names and times");
        let leaf = authority.issue_leaf(&key.spki_der(), &profile, validity).map_err(refused)?;
        Ok(vec![pem(&leaf), authority.certificate_pem().to_owned()])
    }

    async fn sign_by_kms(
        &self,
        url: &str,
        root: &str,
        key: &CertKey,
        config: CertConfig,
        quoted: &Quoted,
    ) -> Result<Vec<String>, RpcError> {
        let body = RequestBody::V2 { attestation: quoted.attestation.stripped().encode() };
        let request = CertRequest { pubkey: key.spki_der(), config, body };
        let (csr, signature) = request.sign(key).map_err(internal)?;
        let request = SignCertRequest { api_version: 2, csr, signature, vm_config: self.application.sys_config.vm_config.clone() };
        let session = self.session.lock().await.clone();
        if let Some(session) = session {
            match signed(&session, request.clone(), key).await {
                Ok(chain) => return Ok(chain),
                Err(error) => {
                    tracing::warn!(url = session.url, %error, "KMS of before does not sign; trying all");
                    *self.session.lock().await = None;
                }
            }
        }
        let directory = self.directory(url, root)?;
        let attempt = |session: KmsSession| {
            let request = request.clone();
            async move {
                let chain = signed(&session, request, key).await?;
                Ok((session, chain))
            }
        };
        let (session, chain) = directory.first(&self.identity(), attempt).await.map_err(|error| RpcError::from_user_facing(&error))?;
        *self.session.lock().await = Some(Arc::new(session));
        Ok(chain)
    }

    /// The KMS that gave the keys comes first; any other must have the same root.
    fn directory(&self, url: &str, root: &str) -> Result<KmsDirectory, RpcError> {
        let mut urls = vec![url.to_owned()];
        urls.extend(self.application.sys_config.kms_urls.iter().filter(|other| *other != url).cloned());
        let pinned_root = hex::decode(root).map_err(|error| RpcError::internal(format!("root of the KMS: {error}")))?;
        let trust = KmsTrust::in_hardware(Some(pinned_root), &self.application.sys_config);
        Ok(KmsDirectory { urls, trust: trust.map_err(|error| RpcError::from_user_facing(&error))? })
    }

    fn identity(&self) -> KmsIdentity {
        let check = MrConfigIdCheck { app: self.application.compose.clone(), app_id: self.application.app_id };
        KmsIdentity {
            attester: Arc::clone(self.evidence.attester()),
            sys_config: self.application.sys_config_text.clone(),
            check: Arc::new(move |quoted| check.check(quoted).map_err(|error| Box::new(error) as EvidenceRefusal)),
        }
    }
}

/// Has `session` sign; its leaf must be for `key`.
async fn signed(session: &KmsSession, request: SignCertRequest, key: &CertKey) -> Result<Vec<String>, KmsAttemptError> {
    let chain = session.sign_cert(request).await?;
    let leaf = chain.first().and_then(|leaf| CertificateDer::from_pem_slice(leaf.as_bytes()).ok());
    let ours = leaf.and_then(|leaf| RaTlsCertificate::parse(&leaf).ok()).is_some_and(|leaf| leaf.spki_der() == key.spki_der());
    if ours { Ok(chain) } else { Err(KmsAttemptError::Answer { reason: "its certificate is for another key".to_owned() }) }
}

/// The last second of the year 9999. Source: RFC 5280 §4.1.2.5.
const LAST_INSTANT: u64 = 253_402_300_799;

fn check(config: &CertConfig) -> Result<(), RpcError> {
    let refuse = |cause: &str, fix: &str| Err(RpcError::new("agent/certificate-request", cause, fix));
    let now = dstack_service::clock::unix_seconds();
    let end = config.not_after.unwrap_or(now.saturating_add(Validity::TEN_YEARS));
    if config.not_before.is_some_and(|start| start >= end) {
        return refuse("not_before must be earlier than not_after", "give times in Unix seconds, or leave them out");
    }
    if end > LAST_INSTANT {
        return refuse("not_after is beyond the year 9999, which no certificate can name", "give a time in Unix seconds, or leave it out");
    }
    if config.subject_alt_names.len() > MAX_NAMES {
        return refuse("more than 64 alternative names", "ask for several certificates");
    }
    if config.subject_alt_names.iter().chain([&config.subject]).any(|name| name.len() > MAX_NAME_BYTES) {
        return refuse("a name has more than 253 bytes", "choose shorter names");
    }
    Ok(())
}

fn app_info(application: &Application, quoted: &Quoted) -> Result<AppInfo, RpcError> {
    let quote = UnverifiedQuote::parse(&quoted.quote).map_err(internal)?;
    let fields = quote.fields();
    let [.., rtmr3] = &fields.rtmr.0;
    let provider = application.key_provider_info.as_bytes();
    let scripts = application.compose.document().init_scripts();
    Ok(AppInfo {
        app_id: application.app_id.as_bytes().to_vec().into(),
        compose_hash: application.compose.compose_hash().as_bytes().to_vec().into(),
        instance_id: application.instance_id.as_bytes().to_vec().into(),
        device_id: device_id().to_vec().into(),
        mr_system: mr_system(fields, Some(provider)).to_vec().into(),
        mr_aggregated: mr_aggregated(fields, rtmr3).to_vec().into(),
        os_image_hash: application.os_image_hash.clone().into(),
        key_provider_info: provider.to_vec().into(),
        init_script_hashes: Some(scripts.iter().map(|script| Sha256::digest(script).to_vec().into()).collect()),
    })
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn internal(error: impl std::error::Error) -> RpcError {
    RpcError::internal(chain_of(&error))
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
