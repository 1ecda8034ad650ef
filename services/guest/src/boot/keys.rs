//! Third phase: the keys of this application instance.
//!
//! With separated keys there is one set per epoch: the current one, and the older ones as long as the KMS hands them out.

use std::{sync::Arc, time::Duration};

use dstack_api::{UserFacing, kms::AppKeyResponse};
use dstack_attestation::UnverifiedQuote;
use dstack_attester::{Attester, AttesterError, Quoted};
use dstack_event_log::names;
use dstack_key_hierarchy::{AppKeys, InvalidKey, LocalAppKeys, Secret};
use dstack_manifest::{KeyProviderKind, OsImageHash};
use dstack_ra_tls::{AuthorityError, CaProfile, CertKey, CertificateAuthority, KeyError, collateral::FetchError};
use rand_core::OsRng;

use super::{
    measured::{ConfigMeasured, MeasureError, pinned_provider},
    network::NetworkUp,
    received_keys::{EpochAppKeys, ReceivedKeys, parse_keys},
};
use crate::{
    app_keys::{AppKeysDocument, ProviderDocument},
    kms_client::{EvidenceRefusal, KmsDirectory, KmsError, KmsIdentity, KmsSession, validity},
    kms_trust::KmsTrust,
};

/// When nobody answered: a KMS that is being restarted gets this much time.
const RETRY_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// No KMS helped.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The host's source of collateral.
    #[error(transparent)]
    Collateral(#[from] FetchError),
    /// The configuration or the TEE.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The TEE.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The provider is not there yet.
    #[error("key provider {provider} is not implemented in this release of dstack-os")]
    NotImplemented {
        /// Its name.
        provider: KeyProviderKind,
    },
    /// A key could not be made.
    #[error(transparent)]
    Invalid(#[from] InvalidKey),
    /// A certificate key.
    #[error(transparent)]
    CertKey(#[from] KeyError),
    /// The app's own authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl UserFacing for KeysError {
    fn code(&self) -> &'static str {
        match self {
            Self::Kms(error) => error.code(),
            Self::Collateral(error) => error.code(),
            Self::Measure(error) => error.code(),
            Self::Attester(error) => error.code(),
            Self::NotImplemented { .. } => "guest/not-implemented",
            Self::Invalid(_) | Self::CertKey(_) | Self::Authority(_) => "guest/keys",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Kms(error) => error.fix(),
            Self::Collateral(error) => error.fix(),
            Self::Measure(error) => error.fix(),
            Self::Attester(error) => error.fix(),
            Self::NotImplemented { .. } => "use the key provider kms or none".to_owned(),
            Self::Invalid(_) | Self::CertKey(_) | Self::Authority(_) => "start the VM again".to_owned(),
        }
    }
}

/// The configuration was measured, and its keys are here.
#[derive(Debug)]
pub struct KeysObtained {
    /// What was measured.
    pub measured: ConfigMeasured,
    /// The keys; of apps with epochs those of the current one.
    pub keys: AppKeys,
    /// Of earlier epochs, the latest first.
    pub older: Vec<EpochAppKeys>,
    /// The same as a document for the guest agent.
    pub document: AppKeysDocument,
}

impl ConfigMeasured {
    /// Obtains the keys from the provider that the app names and measures where they came from.
    ///
    /// Errors: the provider refuses, is not the pinned one, or is not implemented.
    pub async fn obtain_keys(self, _network: &NetworkUp) -> Result<KeysObtained, KeysError> {
        let (keys, older, document) = match self.config.app.document().key_provider() {
            KeyProviderKind::Kms => self.keys_from_kms().await?,
            KeyProviderKind::None => self.keys_from_nowhere()?,
            provider => return Err(KeysError::NotImplemented { provider }),
        };
        self.extend(names::KEY_PROVIDER, document.provider_info().as_bytes())?;
        Ok(KeysObtained { measured: self, keys, older, document })
    }

    async fn keys_from_kms(&self) -> Result<(AppKeys, Vec<EpochAppKeys>, AppKeysDocument), KeysError> {
        let sys_config = &self.config.sys_config;
        let trust = KmsTrust::in_hardware(pinned_provider(&self.config.app)?, sys_config)?;
        let directory = KmsDirectory { urls: sys_config.kms_urls.clone(), trust };
        let (vm_config, scheme) = (&sys_config.vm_config, self.config.app.document().key_scheme());
        let identity = self.kms_identity();
        let (session, response, received) = directory
            .first_patiently(&identity, &RETRY_PAUSES, |session| async move {
                let response = session.app_keys(vm_config.clone(), scheme).await?;
                let received = parse_keys(&response, scheme)?;
                Ok((session, response, received))
            })
            .await?;
        if let Ok(hash) = OsImageHash::try_from(response.os_image_hash.as_slice()) {
            self.extend(names::OS_IMAGE_HASH, hash.as_bytes())?;
        }
        let document = document(&received, &session, &response);
        Ok((received.keys, received.older, document))
    }

    fn kms_identity(&self) -> KmsIdentity {
        let app = self.config.app.clone();
        let check = MrConfigIdCheck { app, app_id: self.config.app_id };
        KmsIdentity {
            attester: Arc::clone(&self.attester),
            sys_config: self.config.sys_config_text.clone(),
            check: Arc::new(move |quoted: &Quoted| check.check(quoted).map_err(|error| Box::new(error) as EvidenceRefusal)),
        }
    }

    /// Random keys that nobody else has and that end with this boot.
    fn keys_from_nowhere(&self) -> Result<(AppKeys, Vec<EpochAppKeys>, AppKeysDocument), KeysError> {
        let quoted = self.attester.quote(&[0; 64], &self.config.sys_config_text)?;
        MrConfigIdCheck { app: self.config.app.clone(), app_id: self.config.app_id }.check(&quoted)?;
        let local = LocalAppKeys::from_seed(&Secret::generate(&mut OsRng))?;
        let key = CertKey::from_pkcs8_der(&local.ca_key.to_pkcs8_der()?)?;
        let pem = key.to_pem().to_string();
        let authority = CertificateAuthority::self_signed(CaProfile::AppRoot, key, validity())?;
        let provider = ProviderDocument::None { key: pem };
        let document = AppKeysDocument::new(&local.keys, authority.certificate_pem().to_owned(), String::new(), provider);
        Ok((local.keys, Vec::new(), document))
    }
}

/// Compares a quote of this TD with the configuration it was started for.
#[derive(Debug, Clone)]
pub struct MrConfigIdCheck {
    /// The application.
    pub app: dstack_manifest::AppCompose,
    /// Its identity.
    pub app_id: dstack_manifest::AppId,
}

impl MrConfigIdCheck {
    /// Checks a quote.
    ///
    /// Errors: as [`super::measured::check_mr_config_id`].
    pub fn check(&self, quoted: &Quoted) -> Result<(), MeasureError> {
        let quote = UnverifiedQuote::parse(&quoted.quote).map_err(|error| MeasureError::Quote { reason: error.to_string() })?;
        super::measured::check_mr_config_id(&self.app, &self.app_id, &quote.fields().mr_config_id)
    }
}

fn document(received: &ReceivedKeys, session: &KmsSession, response: &AppKeyResponse) -> AppKeysDocument {
    let provider = ProviderDocument::Kms {
        url: session.url.clone(),
        pubkey: hex::encode(&session.root_spki),
        tmp_ca_key: session.authorities.temp_ca_key.clone(),
        tmp_ca_cert: session.authorities.temp_ca_cert.clone(),
    };
    AppKeysDocument::new(&received.keys, response.ca_cert.clone(), response.gateway_app_id.clone(), provider)
        .with_epochs(received.epoch, &received.older)
}

/// The TEE of this guest.
///
/// Errors: none, or one that cannot be used.
pub fn open_attester(options: &dstack_attester::Options) -> Result<Arc<Attester>, AttesterError> {
    Attester::open(options).map(Arc::new)
}
