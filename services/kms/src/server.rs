//! Start, listener and routes.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{Router, routing::get};
use dstack_api::{UserFacing, kms::KmsServer};
use dstack_attestation::{DocumentReference, Policy, RememberedReference, TrustAnchorError, TrustAnchors, Verifier};
use dstack_attester::{Attester, AttesterError};
use dstack_authorization::AllowListError;
use dstack_ra_tls::{
    AuthorityError, CertKey, CertificateAuthority, EvidenceVerifier, LeafProfile, Validity, VerificationLimits,
    collateral::{CollateralClient, FetchError},
    ra_tls_report_data,
    tls::{self, Identity},
};
use dstack_rpc::{GetPolicy, ListenError, Listener};
use dstack_service::clock::unix_seconds;
use rustls_pki_types::CertificateDer;

use crate::{
    api::{Kms, KmsDispatch},
    audit::Audit,
    bootstrap,
    cert_policy::CertificateRules,
    config::Settings,
    domain::Domain,
    key_store::{self, KeyStore, KeyStoreError},
    policy,
    release::pem_of,
};

/// Calls that change nothing and carry nothing secret.
const READ_ONLY: GetPolicy = GetPolicy::ReadOnly(&["GetMeta", "GetTempCaCert", "GetAppEnvEncryptPubKey"]);

/// Evidence of this machine over report data, as an encoded stripped envelope; none outside of a TEE.
pub(crate) type Attest<'a> = dyn Fn(&[u8; 64]) -> Option<Vec<u8>> + 'a;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The root keys would lie open.
    #[error("no TEE protects the root keys from the owner of this machine")]
    NoTee {
        /// What was found instead.
        #[source]
        source: AttesterError,
    },
    /// Root keys.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// Policy.
    #[error(transparent)]
    AllowList(#[from] AllowListError),
    /// Trust anchor from `[danger]`.
    #[error("{} as simulated root", path.display())]
    SimulatedRoot {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TrustAnchorError,
    },
    /// Collateral service.
    #[error(transparent)]
    Collateral(#[from] FetchError),
    /// Listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// TLS library.
    #[error("TLS configuration: {reason}")]
    Tls {
        /// Its words.
        reason: String,
    },
}

impl UserFacing for StartError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoTee { .. } => "kms/no-tee",
            Self::Keys(error) => error.code(),
            Self::AllowList(error) => error.code(),
            Self::SimulatedRoot { .. } => "kms/simulated-root",
            Self::Collateral(error) => error.code(),
            Self::Listen(error) => error.code(),
            Self::Tls { .. } => "kms/tls",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoTee { .. } => {
                "run the KMS in a confidential VM, or set run_without_tee = true under [danger] for a test system".to_owned()
            }
            Self::Keys(error) => error.fix(),
            Self::AllowList(error) => error.fix(),
            Self::SimulatedRoot { .. } => "give the root certificate that the software TEE generated".to_owned(),
            Self::Collateral(error) => error.fix(),
            Self::Listen(error) => error.fix(),
            Self::Tls { .. } => "read the log; this is a defect worth reporting".to_owned(),
        }
    }
}

/// A service that is ready to run: keys loaded, address bound.
pub struct Server {
    kms: Arc<Kms>,
    listener: Listener,
    ready_file: Option<PathBuf>,
}

impl Server {
    /// Loads or makes the keys, and binds the address.
    ///
    /// Errors: see [`StartError`]; nothing is left behind that a next start could trip over.
    pub async fn open(settings: Settings) -> Result<Self, StartError> {
        let attest = open_tee(&settings)?;
        let attest: &Attest<'_> = &attest;
        let verifier = Verifier::new(trust_anchors(&settings)?, evidence_policy(&settings))
            .with_image_reference(Arc::new(RememberedReference::new(DocumentReference)));
        let authorizer = policy::open(&settings).await?;
        let collateral = collateral_client(&settings.file.collateral_url)?;
        let now = unix_seconds();
        let store = bootstrap::load_or_create(&settings.file.cert_dir, &settings.domain, attest, now)?;
        let identity = renew_rpc_certificate(&store, &settings, attest, now)?;
        let config = tls::server(&identity, store.temp.certificate_der()).map_err(|error| StartError::Tls { reason: error.to_string() })?;
        let listener = Listener::tls(settings.file.listen, config).await?;
        let limits = VerificationLimits {
            concurrent: settings.file.max_verifications,
            verdicts: settings.file.verified_cache_entries,
            ..VerificationLimits::default()
        };
        let verification = EvidenceVerifier::new(verifier, collateral, limits);
        let max_seconds = u64::from(settings.file.max_certificate_days) * 24 * 3600;
        let rules = CertificateRules { kms_domain: settings.domain, app_domains: settings.app_domains, max_seconds };
        let kms = Kms { store, authorizer, verification, rules, audit: Audit::new() };
        Ok(Self { kms: Arc::new(kms), listener, ready_file: settings.file.ready_file })
    }

    /// Address in use.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` completes, then lets running calls end.
    ///
    /// Errors: readiness could not be announced.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        tracing::info!(address = self.local_addr().map(|address| address.to_string()), "serving");
        dstack_service::readiness::announce(self.ready_file.as_deref())?;
        dstack_rpc::serve(self.listener, router(self.kms), shutdown).await;
        Ok(())
    }
}

fn router(kms: Arc<Kms>) -> Router {
    dstack_rpc::mount(dstack_api::wire::PRPC_BASE, KmsDispatch(KmsServer(kms)), READ_ONLY)
        .route("/health", get(|| async { "OK" }))
        .route("/healthz", get(|| async { "OK" }))
}

fn trust_anchors(settings: &Settings) -> Result<TrustAnchors, StartError> {
    let (Some(der), Some(path)) = (&settings.simulated_root, &settings.file.danger.simulated_root) else {
        return Ok(TrustAnchors::hardware());
    };
    tracing::warn!(setting = "danger.simulated_root", path = %path.display(), "evidence of a software TEE is believed");
    let anchors = TrustAnchors::hardware().danger_simulated_root(der.clone());
    anchors.map_err(|source| StartError::SimulatedRoot { path: path.clone(), source })
}

/// What evidence must show whoever it is of. TCB status and advisories are the allow list's business.
fn evidence_policy(settings: &Settings) -> Policy {
    let accept_unchecked_acpi = settings.file.danger.accept_unchecked_acpi;
    if accept_unchecked_acpi {
        tracing::warn!(setting = "danger.accept_unchecked_acpi", "ACPI tables of guests are not checked");
    }
    Policy { accept_unchecked_acpi, ..Policy::default() }
}

fn collateral_client(url: &str) -> Result<CollateralClient, StartError> {
    Ok(CollateralClient::new(url)?.with_tls(dstack_rpc::system_tls()))
}

/// Source of evidence of this machine.
fn open_tee(settings: &Settings) -> Result<impl Fn(&[u8; 64]) -> Option<Vec<u8>> + use<>, StartError> {
    let attester = match Attester::open(&dstack_attester::Options::default()) {
        Ok(attester) => Some(attester),
        Err(error) if settings.file.danger.run_without_tee => {
            tracing::warn!(setting = "danger.run_without_tee", %error, "no TEE protects the root keys from the owner of this machine");
            None
        }
        Err(source) => return Err(StartError::NoTee { source }),
    };
    Ok(move |report_data: &[u8; 64]| {
        let quoted = attester.as_ref()?.quote(report_data, "{}");
        quoted
            .inspect_err(|error| tracing::error!(%error, "no evidence of this machine"))
            .ok()
            .map(|quoted| quoted.attestation.stripped().encode())
    })
}

/// A chain, leaf first.
pub(crate) struct Chain {
    pub(crate) ders: Vec<CertificateDer<'static>>,
    pub(crate) pem: String,
}

/// A fresh certificate of the HTTPS server, with evidence of now.
pub(crate) fn rpc_chain(
    root: &CertificateAuthority,
    key: &CertKey,
    domain: &Domain,
    attest: &Attest<'_>,
    now: u64,
) -> Result<Chain, AuthorityError> {
    let spki = key.spki_der();
    let profile = LeafProfile::kms_rpc(domain.as_str(), attest(&ra_tls_report_data(&spki)));
    let leaf = root.issue_leaf(&spki, &profile, Validity::starting(now, Validity::TEN_YEARS))?;
    let pem = format!("{}{}", pem_of(&leaf), root.certificate_pem());
    Ok(Chain { ders: vec![leaf, root.certificate_der().clone()], pem })
}

fn renew_rpc_certificate(store: &KeyStore, settings: &Settings, attest: &Attest<'_>, now: u64) -> Result<Identity, StartError> {
    let dir = &settings.file.cert_dir;
    let chain = rpc_chain(&store.root, &store.rpc_key, &settings.domain, attest, now).map_err(KeyStoreError::from)?;
    key_store::write(dir, key_store::RPC_CRT, chain.pem.as_bytes())?;
    key_store::write(dir, key_store::RPC_DOMAIN, settings.domain.as_str().as_bytes())?;
    let key = CertKey::from_pem(&store.rpc_key.to_pem()).map_err(KeyStoreError::from)?;
    Ok(Identity { chain: chain.ders, key })
}
