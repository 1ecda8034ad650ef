//! Second phase: the configuration is measured into RTMR3. From here on, evidence names this application and no other.

use std::sync::Arc;

use dstack_api::UserFacing;
use dstack_attester::{Attester, AttesterError};
use dstack_event_log::{EventVersion, names};
use dstack_manifest::{AppCompose, AppId, mr_config_id_v1, mr_config_id_v2};
use sha2::{Digest as _, Sha256};

use super::host_config::HostConfigRead;

/// Why the configuration could not be measured, or is not the one this TD was started for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The TEE.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The host bound this TD to another configuration.
    #[error("this TD was started for another configuration: MRCONFIGID {found}")]
    MrConfigId {
        /// Hex.
        found: String,
    },
    /// A form of MRCONFIGID that this release cannot compute.
    #[error("MRCONFIGID version {version} is not implemented")]
    MrConfigIdVersion {
        /// First byte.
        version: u8,
    },
    /// The pinned provider's id is not hex.
    #[error("key_provider_id is not hex")]
    KeyProviderId(#[source] hex::FromHexError),
    /// The quote cannot be parsed.
    #[error("the quote of this TD is malformed: {reason}")]
    Quote {
        /// What the parser met.
        reason: String,
    },
}

impl UserFacing for MeasureError {
    fn code(&self) -> &'static str {
        match self {
            Self::Attester(error) => error.code(),
            Self::MrConfigId { .. } => "guest/mr-config-id-differs",
            Self::MrConfigIdVersion { .. } => "guest/not-implemented",
            Self::KeyProviderId(_) => "guest/app-compose-refused",
            Self::Quote { .. } => "guest/quote-malformed",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Attester(error) => error.fix(),
            Self::MrConfigId { .. } => "start the VM with the app-compose.json it was created for".to_owned(),
            Self::MrConfigIdVersion { .. } => "let the VMM use MRCONFIGID version 1 or 2".to_owned(),
            Self::KeyProviderId(_) => "correct key_provider_id in app-compose.json: the hex SPKI DER of the KMS root".to_owned(),
            Self::Quote { .. } => "check the host's quoting service".to_owned(),
        }
    }
}

/// The configuration, measured.
#[derive(Debug)]
pub struct ConfigMeasured {
    /// What was measured.
    pub config: HostConfigRead,
    /// The TEE, for what comes later.
    pub attester: Arc<Attester>,
}

impl HostConfigRead {
    /// Measures the configuration, in the order that verifiers know.
    ///
    /// Errors: the TEE's.
    pub fn measure(self, attester: Arc<Attester>) -> Result<ConfigMeasured, MeasureError> {
        let version = event_version(&self.app);
        let extend = |name: &str, payload: &[u8]| attester.extend_runtime_event(name, payload, version);
        extend(names::SYSTEM_PREPARING, &[])?;
        extend(names::APP_ID, self.app_id.as_bytes())?;
        extend(names::COMPOSE_HASH, self.app.compose_hash().as_bytes())?;
        for script in self.app.document().init_scripts() {
            extend(names::INIT_SCRIPT_HASH, &Sha256::digest(script))?;
        }
        // Canonical JSON of the policy; a policy itself is refused earlier, so this is always the empty one.
        extend(names::GPU_POLICY_HASH, &Sha256::digest("{}"))?;
        extend(names::INSTANCE_ID, self.instance_id.as_bytes())?;
        extend(names::BOOT_MR_DONE, &[])?;
        Ok(ConfigMeasured { config: self, attester })
    }
}

impl ConfigMeasured {
    /// Measures one more event of the boot.
    ///
    /// Errors: the TEE's.
    pub fn extend(&self, name: &str, payload: &[u8]) -> Result<(), AttesterError> {
        self.attester.extend_runtime_event(name, payload, event_version(&self.config.app))
    }
}

/// Compares MRCONFIGID, set by the host before the TD started, with the configuration. All zero means not set.
///
/// Errors: another configuration, or a version that cannot be computed here.
pub fn check_mr_config_id(app: &AppCompose, app_id: &AppId, found: &[u8; 48]) -> Result<(), MeasureError> {
    let compose_hash = app.compose_hash();
    let expected = match found.first() {
        _ if found.iter().all(|byte| *byte == 0) => return Ok(()),
        Some(1) => mr_config_id_v1(&compose_hash),
        Some(2) => mr_config_id_v2(&compose_hash, app_id, app.document().key_provider(), &pinned_provider(app)?.unwrap_or_default()),
        version => return Err(MeasureError::MrConfigIdVersion { version: version.copied().unwrap_or(0) }),
    };
    if expected == *found { Ok(()) } else { Err(MeasureError::MrConfigId { found: hex::encode(found) }) }
}

/// Digest rule the app chose.
#[must_use]
pub fn event_version(app: &AppCompose) -> EventVersion {
    if app.document().event_log_version == 2 { EventVersion::V2 } else { EventVersion::V1 }
}

/// The key provider the app pins, if it does.
///
/// Errors: not hex.
pub fn pinned_provider(app: &AppCompose) -> Result<Option<Vec<u8>>, MeasureError> {
    let text = app.document().key_provider_id.as_str();
    if text.is_empty() {
        return Ok(None);
    }
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).map(Some).map_err(MeasureError::KeyProviderId)
}
