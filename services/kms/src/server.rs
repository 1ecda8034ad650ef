//! Start, listener and routes.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
use dstack_api::{UserFacing, kms::KmsServer};
use dstack_attestation::{Policy, TrustAnchorError, TrustAnchors};
use dstack_attester::AttesterError;
use dstack_authorization::AllowListError;
use dstack_ra_tls::{
    AuthorityError, CertKey, CertificateAuthority, LeafProfile, Validity,
    collateral::{CollateralClient, FetchError},
    ra_tls_report_data,
    tls::{self, Identity},
};
use dstack_rpc::{GetPolicy, ListenError, Listener};
use dstack_service::clock::unix_seconds;
use rustls_pki_types::CertificateDer;

use crate::{
    access::AccessError,
    admin::{self, AdminListener},
    api::{Kms, KmsDispatch, OwnKeys},
    audit::Audit,
    cert_policy::CertificateRules,
    config::{LimitsFile, Settings},
    domain::Domain,
    health,
    key_store::{self, KeyStore, KeyStoreError},
    machine::Machine,
    nonce::NonceIssuer,
    rate_limit,
    rate_limit::RateLimiter,
    release::pem_of,
    release_log::{self, ReleaseLog, ReleaseLogError, WitnessSettings},
    sealing::SealingError,
    self_authorization::SelfAuthorization,
};

/// Calls that change nothing and carry nothing secret.
const READ_ONLY: GetPolicy = GetPolicy::ReadOnly(&["GetMeta", "GetTempCaCert", "GetAppEnvEncryptPubKey"]);

/// Evidence of this machine over report data, as an encoded stripped envelope; none outside of a TEE.
pub(crate) type Attest<'a> = dyn Fn(&[u8; 64]) -> Result<Option<Vec<u8>>, AttesterError> + 'a;

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
    /// Configuration of this VM.
    #[error("reading {}", path.display())]
    SysConfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The platform's key for keys at rest.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// No keys, and the configuration forbids making them.
    #[error("there are no keys in {}", dir.display())]
    NoKeys {
        /// `cert_dir`.
        dir: PathBuf,
    },
    /// A token file.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Root keys.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// Policy.
    #[error(transparent)]
    AllowList(#[from] AllowListError),
    /// Release log.
    #[error(transparent)]
    ReleaseLog(#[from] ReleaseLogError),
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
            Self::SysConfig { .. } => "kms/sys-config",
            Self::Sealing(error) => error.code(),
            Self::NoKeys { .. } => "kms/no-keys",
            Self::Access(error) => error.code(),
            Self::Keys(error) => error.code(),
            Self::AllowList(error) => error.code(),
            Self::ReleaseLog(error) => error.code(),
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
            Self::SysConfig { .. } => "name the VM's .sys-config.json as tee.sys_config, or leave it out".to_owned(),
            Self::Sealing(error) => error.fix(),
            Self::NoKeys { .. } => {
                "set onboard.first_start to \"wait\" and onboard this KMS, or to \"bootstrap\" to make new root keys".to_owned()
            }
            Self::Access(error) => error.fix(),
            Self::Keys(error) => error.fix(),
            Self::AllowList(error) => error.fix(),
            Self::ReleaseLog(error) => error.fix(),
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
    admin: Option<AdminListener>,
    ready_file: Option<PathBuf>,
    witnesses: Vec<WitnessSettings>,
    limits: LimitsFile,
}

impl Server {
    /// Loads or makes the keys, and binds the address.
    ///
    /// Errors: see [`StartError`]; nothing is left behind that a next start could trip over.
    pub async fn open(settings: Settings) -> Result<Self, StartError> {
        let machine = Machine::open(&settings).await?;
        let now = unix_seconds();
        let store = machine.keys(&settings, now)?;
        let domain = effective_domain(&settings, &store);
        let log = ReleaseLog::open(&settings.release_log_dir(), &store.keys, &domain, now)?;
        let identity = renew_rpc_certificate(&store, &settings, &domain, &machine, now)?;
        let identity_leaf = identity.chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let config = tls::server(&identity, store.temp.certificate_der()).map_err(|error| StartError::Tls { reason: error.to_string() })?;
        let listener = Listener::tls(settings.file.listen, config).await?;
        let admin = admin::open(&settings).await?;
        let max_seconds = u64::from(settings.file.max_certificate_days) * 24 * 3600;
        let rules = CertificateRules { kms_domain: domain, app_domains: settings.app_domains, max_seconds };
        let Machine { tee, vault, verification, authorizer } = machine;
        let own = OwnKeys { dir: settings.file.cert_dir.clone(), vault, tee, leaf: identity_leaf };
        let (limits, audit) = (settings.file.limits, Audit::new(log, authorizer.backend()));
        let (limiter, nonces) = (Arc::new(RateLimiter::new(&limits)), NonceIssuer::new(&store.keys));
        let itself = (!settings.file.danger.skip_self_authorization).then(SelfAuthorization::new);
        if itself.is_none() {
            tracing::warn!(setting = "danger.skip_self_authorization", "keys are released even if the policy does not allow this KMS");
        }
        let kms = Kms { store, authorizer, verification, rules, audit, own, itself, limiter, nonces };
        Ok(Self { kms: Arc::new(kms), listener, admin, ready_file: settings.file.ready_file, witnesses: settings.witnesses, limits })
    }

    /// Address in use.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr()
    }

    /// Address of the admin calls, where they are served.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(AdminListener::local_addr)
    }

    /// Serves until `shutdown` completes, then lets running calls end.
    ///
    /// Errors: readiness could not be announced.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        tracing::info!(address = self.local_addr().map(|address| address.to_string()), "serving");
        dstack_service::readiness::announce(self.ready_file.as_deref())?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let main = async {
            let witnessing = self.kms.audit.log.witnessing(&self.witnesses);
            let router = router(Arc::clone(&self.kms), &self.limits);
            let serving = dstack_rpc::serve_with(self.listener, router, shutdown, self.limits.connections());
            tokio::pin!(serving);
            tokio::select! {
                () = &mut serving => {}
                () = witnessing => serving.await,
            }
            stop.send_replace(true);
        };
        let admin = async {
            if let Some(admin) = self.admin {
                admin.serve(&self.kms, stopped).await;
            }
        };
        tokio::join!(main, admin);
        Ok(())
    }
}

/// How many threads serve the network on so many processors.
///
/// Half: verification and the release log have threads of their own, and each network thread that is not needed still
/// wakes up to look for work, which cost a fifth of a release.
#[must_use]
pub fn network_threads(processors: usize) -> usize {
    (processors / 2).max(1)
}

fn router(kms: Arc<Kms>, limits: &LimitsFile) -> Router {
    let limiter = Arc::clone(&kms.limiter);
    let calls = dstack_rpc::mount(dstack_api::wire::PRPC_BASE, KmsDispatch(KmsServer(Arc::clone(&kms))), READ_ONLY);
    let limited = calls.merge(release_log::router(&kms.audit.log));
    let limited = limited.layer(axum::middleware::from_fn_with_state(limiter, rate_limit::per_source));
    limited.merge(health::router(kms, limits.metrics))
}

pub(crate) fn trust_anchors(settings: &Settings) -> Result<TrustAnchors, StartError> {
    let (Some(der), Some(path)) = (&settings.simulated_root, &settings.file.danger.simulated_root) else {
        return Ok(TrustAnchors::hardware());
    };
    tracing::warn!(setting = "danger.simulated_root", path = %path.display(), "evidence of a software TEE is believed");
    let anchors = TrustAnchors::hardware().danger_simulated_root(der.clone());
    anchors.map_err(|source| StartError::SimulatedRoot { path: path.clone(), source })
}

/// What evidence must show whoever it is of. TCB status and advisories are the allow list's business.
pub(crate) fn evidence_policy(settings: &Settings) -> Policy {
    let accept_unchecked_acpi = settings.file.danger.accept_unchecked_acpi;
    if accept_unchecked_acpi {
        tracing::warn!(setting = "danger.accept_unchecked_acpi", "ACPI tables of guests are not checked");
    }
    Policy { accept_unchecked_acpi, ..Policy::default() }
}

pub(crate) fn collateral_client(url: &str) -> Result<CollateralClient, StartError> {
    Ok(CollateralClient::new(url)?.with_tls(dstack_rpc::system_tls()))
}

/// A chain, leaf first.
pub(crate) struct Chain {
    pub(crate) ders: Vec<CertificateDer<'static>>,
    pub(crate) pem: String,
}

/// Why there is no certificate for the HTTPS server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The TEE does not vouch for its key.
    #[error(transparent)]
    Evidence(#[from] AttesterError),
}

impl From<ChainError> for KeyStoreError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Authority(error) => error.into(),
            ChainError::Evidence(error) => Self::Evidence(error),
        }
    }
}

/// A fresh certificate of the HTTPS server, with evidence of now.
pub(crate) fn rpc_chain(
    root: &CertificateAuthority,
    key: &CertKey,
    domain: &Domain,
    attest: &Attest<'_>,
    now: u64,
) -> Result<Chain, ChainError> {
    let spki = key.spki_der();
    let profile = LeafProfile::kms_rpc(domain.as_str(), attest(&ra_tls_report_data(&spki))?);
    let leaf = root.issue_leaf(&spki, &profile, Validity::starting(now, Validity::TEN_YEARS))?;
    let pem = format!("{}{}", pem_of(&leaf), root.certificate_pem());
    Ok(Chain { ders: vec![leaf, root.certificate_der().clone()], pem })
}

/// The configured name, else the one chosen when the keys came.
fn effective_domain(settings: &Settings, store: &KeyStore) -> Domain {
    let stored = store.domain.as_deref().and_then(|domain| domain.trim().parse().ok());
    settings.domain.clone().or(stored).unwrap_or_else(|| settings.first_domain())
}

fn renew_rpc_certificate(
    store: &KeyStore,
    settings: &Settings,
    domain: &Domain,
    machine: &Machine,
    now: u64,
) -> Result<Identity, StartError> {
    let dir = &settings.file.cert_dir;
    let attest = |report_data: &[u8; 64]| machine.tee.attest(report_data);
    let chain = rpc_chain(&store.root, &store.rpc_key, domain, &attest, now).map_err(KeyStoreError::from)?;
    key_store::write(dir, key_store::RPC_CRT, chain.pem.as_bytes())?;
    key_store::write(dir, key_store::RPC_DOMAIN, domain.as_str().as_bytes())?;
    let key = CertKey::from_pem(&store.rpc_key.to_pem()).map_err(KeyStoreError::from)?;
    Ok(Identity { chain: chain.ders, key })
}
