//! What this KMS needs before it has keys: its TEE, the vault of its files, and how it judges peers.

use std::{path::Path, sync::Arc};

use dstack_attestation::{DocumentReference, QuoteCollateral, RememberedReference, Verifier};
use dstack_authorization::Authorizer;
use dstack_ra_tls::{EvidenceVerifier, VerificationLimits};
use dstack_service::clock::unix_seconds;

use crate::{
    bootstrap::Site,
    config::{FirstStart, Settings},
    domain::Domain,
    key_store::{KeyStore, ROOT_KEY},
    policy,
    sealing::{self, LocalKeyProvider, Tpm, Vault},
    server::{StartError, collateral_client, evidence_policy, trust_anchors},
    tee::Tee,
};

/// Opened from the settings alone.
pub(crate) struct Machine {
    pub(crate) tee: Tee,
    pub(crate) vault: Vault,
    pub(crate) verification: Arc<EvidenceVerifier>,
    pub(crate) authorizer: Authorizer,
}

impl Machine {
    /// Finds the TEE, gets the sealing key, reads the policy.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, StartError> {
        let tee = Tee::open(settings)?;
        let verifier = Verifier::new(trust_anchors(settings)?, evidence_policy(settings))
            .with_image_reference(Arc::new(RememberedReference::new(DocumentReference)));
        let authorizer = policy::open(settings).await?;
        let collateral = collateral_client(&settings.file.collateral_url)?;
        let vault = open_vault(settings, &tee, verifier.clone()).await?;
        let limits = VerificationLimits {
            concurrent: settings.file.max_verifications,
            verdicts: settings.file.verified_cache_entries,
            ..VerificationLimits::default()
        };
        let mut verification = EvidenceVerifier::new(verifier, collateral, limits);
        if settings.file.attestation.accepts_snp() {
            let chip_keys = settings.file.attestation.chip_keys()?.map(|client| client.with_tls(dstack_rpc::system_tls()));
            verification = verification.accepting_snp_guests(chip_keys);
        }
        let verification = Arc::new(verification);
        Ok(Self { tee, vault, verification, authorizer })
    }

    /// The keys, made here if the configuration says so.
    pub(crate) fn keys(&self, settings: &Settings, now: u64) -> Result<KeyStore, StartError> {
        let domain = settings.first_domain();
        self.at(&settings.file.cert_dir, &domain, now, |site| match settings.file.onboard.first_start {
            FirstStart::Bootstrap => Ok(site.load_or_create()?),
            FirstStart::Wait | FirstStart::Refuse => site.load()?.ok_or_else(|| StartError::NoKeys { dir: settings.file.cert_dir.clone() }),
        })
    }

    /// Runs `act` where the keys lie, with this machine's vault and evidence.
    pub(crate) fn at<T>(&self, dir: &Path, domain: &Domain, now: u64, act: impl FnOnce(&Site<'_>) -> T) -> T {
        let attest = |report_data: &[u8; 64]| self.tee.attest(report_data);
        act(&Site { dir, vault: &self.vault, domain, attest: &attest, now })
    }
}

/// Takes over the plaintext keys of the reference layout in `from`.
///
/// Errors: as [`Server::open`](crate::Server::open); no usable keys in `from`, or keys in `cert_dir` already.
pub async fn import(settings: &Settings, from: &Path) -> Result<(), StartError> {
    let machine = Machine::open(settings).await?;
    let domain = settings.first_domain();
    machine.at(&settings.file.cert_dir, &domain, unix_seconds(), |site| site.import(from))?;
    Ok(())
}

async fn open_vault(settings: &Settings, tee: &Tee, verifier: Verifier) -> Result<Vault, StartError> {
    let table = &settings.file.sealing;
    let collateral = table.collateral_file.as_deref().and_then(|path| {
        let read =
            std::fs::read_to_string(path).inspect_err(|error| tracing::error!(path = %path.display(), %error, "collateral cannot be read"));
        read.ok().and_then(|text| QuoteCollateral::parse_json(&text).ok())
    });
    let judge = sealing::Collateral { verifier, collateral, now: unix_seconds() };
    let local = LocalKeyProvider { address: &table.local_key_provider, mr_enclave: settings.mr_enclave, judge: &judge, tee };
    let tpm = Tpm {
        device: &table.tpm_device,
        pcrs: settings.tpm_pcrs,
        file: settings.tpm_key_file(),
        is_in_use: settings.file.cert_dir.join(ROOT_KEY).exists(),
    };
    Ok(sealing::open_vault(settings.sealing_provider(), tee, &local, &tpm).await?)
}
