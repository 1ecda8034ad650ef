//! Talking to the KMS: it is pinned or proves what it runs in ([`crate::kms_trust`]), this guest shows a certificate with evidence over a fresh key, and every
//! address the host gave is tried, since any of them may be a lie.

use std::{sync::Arc, time::Duration};

use dstack_api::{
    RpcError, UserFacing,
    kms::{AppKeyResponse, Empty, GetAppKeyRequest, GetTempCaCertResponse, KmsClient, SignCertRequest},
};
use dstack_attestation::ReportData;
use dstack_attester::{Attester, AttesterError, Quoted};
use dstack_manifest::KeyScheme;
use dstack_ra_tls::{
    AuthorityError, CertKey, CertificateAuthority, KeyError, LeafProfile, Refusal, Validity, ra_tls_report_data_with, tls, usage,
};
use dstack_rpc::{Client, Endpoint};
use dstack_service::clock::unix_seconds;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::kms_trust::KmsTrust;

/// A guest's clock comes from the host; its certificate is valid from long ago so that a wrong clock does no harm.
const NOT_BEFORE: u64 = 157_766_400;
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Longest nonce that is bound.
const MAX_NONCE_BYTES: usize = 64;
/// Addresses that are tried; a list beyond this is not serious.
const MAX_URLS: usize = 16;

/// Why one KMS did not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KmsAttemptError {
    /// Not an address.
    #[error("the address is not usable: {reason}")]
    Address {
        /// Why.
        reason: String,
    },
    /// It answered with an error, or not at all.
    #[error("{}{}", .0.message, code_suffix(.0))]
    Call(RpcError),
    /// It is not the one the app pins.
    #[error("it has the root {found}, and the app pins {pinned}")]
    NotPinned {
        /// Hex SPKI.
        found: String,
        /// Hex SPKI.
        pinned: String,
    },
    /// It is not pinned and does not prove what it runs in, or its proof is false.
    #[error("it is not believed")]
    NotBelieved(#[source] Refusal),
    /// Its answer cannot be used.
    #[error("its answer is not usable: {reason}")]
    Answer {
        /// Why.
        reason: String,
    },
    /// This guest has no evidence.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// A check of our own evidence failed.
    #[error("{0}")]
    Evidence(EvidenceRefusal),
    /// Certificates could not be made.
    #[error("make the client certificate")]
    Certificate(#[from] AuthorityError),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
}

fn code_suffix(error: &RpcError) -> String {
    if error.code.is_empty() { String::new() } else { format!(" [{}]", error.code) }
}

impl KmsAttemptError {
    /// Nobody was there; trying again may help.
    fn is_unreachable(&self) -> bool {
        matches!(self, Self::Call(error) if error.code == RpcError::UNREACHABLE)
    }
}

/// No KMS gave what was asked for.
#[derive(Debug)]
pub struct KmsError {
    /// What happened with each address, in order.
    pub attempts: Vec<(String, KmsAttemptError)>,
}

impl KmsError {
    /// The first attempt that failed for another reason than that nobody was there.
    fn serious(&self) -> Option<&KmsAttemptError> {
        self.attempts.iter().map(|(_, error)| error).find(|error| !error.is_unreachable())
    }
}

impl std::fmt::Display for KmsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("the host gave no KMS address");
        }
        f.write_str("no KMS answered with what was asked for: ")?;
        for (index, (url, error)) in self.attempts.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{url}: {error}")?;
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for KmsError {}

impl UserFacing for KmsError {
    fn code(&self) -> &'static str {
        match self.serious() {
            None if self.attempts.is_empty() => "guest/no-kms-address",
            None => "guest/kms-unreachable",
            Some(KmsAttemptError::NotPinned { .. }) => "guest/kms-not-pinned",
            Some(KmsAttemptError::NotBelieved(_)) => "guest/kms-not-believed",
            Some(KmsAttemptError::Evidence(error)) => error.code(),
            Some(KmsAttemptError::Attester(error)) => error.code(),
            Some(KmsAttemptError::Call(_)) => "guest/kms-refused",
            Some(_) => "guest/kms",
        }
    }

    fn fix(&self) -> String {
        match self.serious() {
            None if self.attempts.is_empty() => "configure kms_urls of the VMM or of this VM".to_owned(),
            None => "start the KMS, and check that the guest can reach its address".to_owned(),
            Some(KmsAttemptError::NotPinned { .. }) => "use the KMS that app-compose.json names, or deploy the app for this one".to_owned(),
            Some(KmsAttemptError::NotBelieved(Refusal::NoEvidence)) => {
                "use a KMS that runs in a TEE, or pin this one's root as key_provider_id in app-compose.json".to_owned()
            }
            Some(KmsAttemptError::NotBelieved(refusal)) => refusal.fix(),
            Some(KmsAttemptError::Evidence(error)) => error.fix(),
            Some(KmsAttemptError::Attester(error)) => error.fix(),
            Some(KmsAttemptError::Call(told)) if !told.fix.is_empty() => told.fix.clone(),
            Some(KmsAttemptError::Call(_)) => "ask the KMS's operator; the reason is in its log".to_owned(),
            Some(_) => "check that every address in kms_urls is a KMS's, and start the VM again".to_owned(),
        }
    }
}

/// The addresses and who may be there.
#[derive(Debug, Clone)]
pub struct KmsDirectory {
    /// In the order to try. From the host, untrusted.
    pub urls: Vec<String>,
    /// Which of them is believed.
    pub trust: KmsTrust,
}

/// A connection to one KMS that knows our evidence.
#[derive(Debug)]
pub struct KmsSession {
    client: KmsClient<Client>,
    /// Address.
    pub url: String,
    /// The certificates it handed out first.
    pub authorities: GetTempCaCertResponse,
    /// SPKI DER of its root.
    pub root_spki: Vec<u8>,
}

/// Why our own evidence is not shown to anyone.
pub type EvidenceRefusal = Box<dyn UserFacing + Send + Sync>;
/// Checks our own quote before it is shown to anyone.
pub type EvidenceCheck = dyn Fn(&Quoted) -> Result<(), EvidenceRefusal> + Send + Sync;

/// Who we are to a KMS.
#[derive(Clone)]
pub struct KmsIdentity {
    /// Collects evidence.
    pub attester: Arc<Attester>,
    /// Text of `.sys-config.json`.
    pub sys_config: String,
    /// Looks at the quote first.
    pub check: Arc<EvidenceCheck>,
}

impl KmsDirectory {
    /// Calls `operation` with each KMS until one succeeds.
    ///
    /// Errors: all failed; each address with its reason.
    pub async fn first<T, F>(&self, identity: &KmsIdentity, operation: impl Fn(KmsSession) -> F) -> Result<T, KmsError>
    where
        F: Future<Output = Result<T, KmsAttemptError>>,
    {
        let mut attempts = Vec::new();
        for url in self.urls.iter().take(MAX_URLS) {
            let attempt = async { operation(self.connect(url, identity).await?).await };
            match attempt.await {
                Ok(value) => return Ok(value),
                Err(error) => attempts.push((crate::console::printable(url), error)),
            }
        }
        Err(KmsError { attempts })
    }

    /// As [`Self::first`], again after each of `pauses` as long as nobody was reachable.
    ///
    /// Errors: as [`Self::first`].
    pub async fn first_patiently<T, F>(
        &self,
        identity: &KmsIdentity,
        pauses: &[Duration],
        operation: impl Fn(KmsSession) -> F,
    ) -> Result<T, KmsError>
    where
        F: Future<Output = Result<T, KmsAttemptError>>,
    {
        let mut pauses = pauses.iter();
        loop {
            match self.first(identity, &operation).await {
                Err(error) if error.code() == "guest/kms-unreachable" => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => return Err(error),
                },
                result => return result,
            }
        }
    }

    async fn connect(&self, url: &str, identity: &KmsIdentity) -> Result<KmsSession, KmsAttemptError> {
        let endpoint = Endpoint::parse_service(url).map_err(|error| KmsAttemptError::Address { reason: error.to_string() })?;
        let plain = client(&endpoint).with_tls(tls::danger_unverified_client()?);
        let authorities = KmsClient(plain).get_temp_ca_cert(&Empty {}).await.map_err(KmsAttemptError::Call)?;
        let answer = |reason: &str| KmsAttemptError::Answer { reason: reason.to_owned() };
        let root = CertificateDer::from_pem_slice(authorities.ca_cert.as_bytes()).map_err(|_| answer("its root is not a certificate"))?;
        let root_spki = dstack_ra_tls::RaTlsCertificate::parse(&root).map_err(|error| answer(&error.to_string()))?.spki_der().to_vec();
        if let Some(pinned) = self.trust.pinned_root().filter(|pinned| *pinned != root_spki) {
            return Err(KmsAttemptError::NotPinned { found: hex::encode(&root_spki), pinned: hex::encode(pinned) });
        }
        let identity = client_identity(&authorities, identity.clone()).await?;
        let (config, leaf) = tls::pinned_client_keeping_leaf(&root, usage::KMS_RPC, Some(&identity))?;
        let client = KmsClient(client(&endpoint).with_tls(config));
        // Only makes the connection whose certificate is judged; everything that matters is asked after that, of the same certificate.
        client.get_temp_ca_cert(&Empty {}).await.map_err(KmsAttemptError::Call)?;
        let leaf = leaf.get().ok_or_else(|| answer("it showed no certificate"))?;
        self.trust.judge(leaf, unix_seconds()).await.map_err(KmsAttemptError::NotBelieved)?;
        Ok(KmsSession { client, url: url.to_owned(), authorities, root_spki })
    }
}

fn client(endpoint: &Endpoint) -> Client {
    Client::new(endpoint.clone()).with_timeout(CALL_TIMEOUT).with_answer_limit(MAX_ANSWER_BYTES)
}

/// A certificate under the KMS's temporary authority: worthless but for the evidence inside, which binds its key.
async fn client_identity(authorities: &GetTempCaCertResponse, identity: KmsIdentity) -> Result<tls::Identity, KmsAttemptError> {
    let authority = CertificateAuthority::load(&authorities.temp_ca_cert, CertKey::from_pem(&authorities.temp_ca_key)?)?;
    let key = CertKey::generate()?;
    let nonce = offered_nonce(authorities).map(<[u8]>::to_vec);
    let quoted = quote(identity, ra_tls_report_data_with(&key.spki_der(), nonce.as_deref())).await?;
    let profile = LeafProfile { nonce, ..LeafProfile::guest_client(quoted.attestation.stripped().encode()) };
    let leaf = authority.issue_leaf(&key.spki_der(), &profile, validity())?;
    Ok(tls::Identity { chain: vec![leaf], key })
}

/// The nonce that a KMS of this release offers; older ones offer none, and get evidence as they know it. Who takes the nonce out of the
/// answer gains nothing: a policy that wants fresh evidence will refuse it.
fn offered_nonce(authorities: &GetTempCaCertResponse) -> Option<&[u8]> {
    Some(authorities.nonce.as_slice()).filter(|nonce| (1..=MAX_NONCE_BYTES).contains(&nonce.len()))
}

/// Evidence with these report data.
async fn quote(identity: KmsIdentity, report_data: ReportData) -> Result<Quoted, KmsAttemptError> {
    let task = tokio::task::spawn_blocking(move || {
        let quoted = identity.attester.quote(&report_data, &identity.sys_config)?;
        (identity.check)(&quoted).map_err(KmsAttemptError::Evidence)?;
        Ok(quoted)
    });
    task.await.unwrap_or_else(|_| Err(KmsAttemptError::Answer { reason: "collecting evidence broke off".to_owned() }))
}

/// Long enough for any clock.
#[must_use]
pub fn validity() -> Validity {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(NOT_BEFORE, |since| since.as_secs());
    Validity { not_before: NOT_BEFORE, not_after: now.max(NOT_BEFORE) + Validity::TEN_YEARS }
}

impl KmsSession {
    /// Asks for the application's keys, made as `scheme` says.
    ///
    /// Errors: the KMS refuses, or its root is another than the connection's.
    pub async fn app_keys(&self, vm_config: String, scheme: KeyScheme) -> Result<AppKeyResponse, KmsAttemptError> {
        let api_version = if offered_nonce(&self.authorities).is_some() { 2 } else { 1 };
        let request = GetAppKeyRequest { api_version, vm_config, key_scheme: scheme.wire_name().to_owned() };
        let response = self.client.get_app_key(&request).await.map_err(KmsAttemptError::Call)?;
        let answer = |reason: &str| KmsAttemptError::Answer { reason: reason.to_owned() };
        let root = CertificateDer::from_pem_slice(response.ca_cert.as_bytes()).map_err(|_| answer("its root is not a certificate"))?;
        let spki = dstack_ra_tls::RaTlsCertificate::parse(&root).map_err(|error| answer(&error.to_string()))?.spki_der().to_vec();
        if spki == self.root_spki { Ok(response) } else { Err(answer("it names another root than its connection has")) }
    }

    /// Has a certificate signed; returns the chain, PEM, leaf first.
    ///
    /// Errors: the KMS refuses.
    pub async fn sign_cert(&self, request: SignCertRequest) -> Result<Vec<String>, KmsAttemptError> {
        let response = self.client.sign_cert(&request).await.map_err(KmsAttemptError::Call)?;
        if response.certificate_chain.is_empty() {
            return Err(KmsAttemptError::Answer { reason: "it gave no certificate".to_owned() });
        }
        Ok(response.certificate_chain)
    }
}
