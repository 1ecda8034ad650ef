//! What the agent knows about its application: the files of `dstack-init`, compared with what was measured.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_attester::{Attester, AttesterError};
use dstack_event_log::{EventLog, EventLogError, EventVersion, names};
use dstack_key_hierarchy::AppKeys;
use dstack_manifest::{
    AppCompose, AppComposeError, AppId, InstanceId, SysConfig,
    host_share::{self, SharedFile},
};

use crate::{
    app_keys::{AppKeysDocument, AppKeysError, EpochKey},
    boot::measured::event_version,
};

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplicationError {
    /// A file.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Longer than it may be.
    #[error("{} exceeds {max_bytes} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// How long it may be.
        max_bytes: u64,
    },
    /// The application's document.
    #[error(transparent)]
    AppCompose(#[from] AppComposeError),
    /// The host's document.
    #[error("{} is malformed: {reason}", host_share::SYS_CONFIG.name)]
    SysConfig {
        /// What the parser said.
        reason: String,
    },
    /// The keys.
    #[error(transparent)]
    Keys(#[from] AppKeysError),
    /// The TEE.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The log cannot be replayed.
    #[error("event log of this boot")]
    Log(#[from] EventLogError),
    /// The files are not those that were measured.
    #[error("{what} was not measured, or measured differently")]
    NotMeasured {
        /// Which event.
        what: &'static str,
    },
}

impl UserFacing for ApplicationError {
    fn code(&self) -> &'static str {
        match self {
            Self::Attester(error) => error.code(),
            Self::NotMeasured { .. } | Self::Log(_) => "agent/not-measured",
            _ => "agent/state",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Attester(error) => error.fix(),
            _ => "start the VM again".to_owned(),
        }
    }
}

/// The application of this guest.
#[derive(Debug)]
pub struct Application {
    /// Its document, as measured.
    pub compose: AppCompose,
    /// As measured.
    pub app_id: AppId,
    /// As measured.
    pub instance_id: InstanceId,
    /// 32 bytes as the KMS verified and the guest measured it; otherwise as the host states it; may be empty.
    pub os_image_hash: Vec<u8>,
    /// Measured JSON text `{"name","id"}`.
    pub key_provider_info: String,
    /// `.sys-config.json` as text. Untrusted.
    pub sys_config_text: String,
    /// The same, parsed.
    pub sys_config: SysConfig,
    /// Whether the host says that this is the software TEE.
    pub is_simulated: bool,
    /// The keys.
    pub keys: AppKeys,
    /// The application's keys of every epoch, the current one first.
    pub epoch_keys: Vec<EpochKey>,
    /// The keys' document, which knows where they came from.
    pub document: AppKeysDocument,
}

impl Application {
    /// Reads the files in `share` and compares them with the measured events.
    ///
    /// Errors: a file that is missing or malformed, or not the one that was measured.
    pub fn load(share: &Path, attester: &Attester) -> Result<Self, ApplicationError> {
        let compose = AppCompose::parse(read(share, host_share::APP_COMPOSE)?)?;
        let sys_config_text = String::from_utf8_lossy(&read(share, host_share::SYS_CONFIG)?).into_owned();
        let refuse = |error: serde_json::Error| ApplicationError::SysConfig { reason: error.to_string() };
        let sys_config: SysConfig = serde_json::from_str(&sys_config_text).map_err(refuse)?;
        let vm_config = sys_config.parse_vm_config().map_err(refuse)?;
        let document = AppKeysDocument::load(&share.join(".appkeys.json"))?;
        let (keys, epoch_keys) = (document.keys()?, document.epoch_keys()?);

        let events = attester.runtime_events()?;
        let log = EventLog::new(events.iter().map(dstack_event_log::RuntimeEvent::to_event).collect())?;
        let measured = |what: &'static str| log.boot_payload(what).ok_or(ApplicationError::NotMeasured { what });
        if measured(names::COMPOSE_HASH)? != compose.compose_hash().as_bytes() {
            return Err(ApplicationError::NotMeasured { what: names::COMPOSE_HASH });
        }
        let app_id = measured(names::APP_ID)?;
        let app_id = AppId::try_from(app_id.as_slice()).map_err(|_| ApplicationError::NotMeasured { what: names::APP_ID })?;
        let instance_id = measured(names::INSTANCE_ID)?;
        let instance_id =
            InstanceId::try_from(instance_id.as_slice()).map_err(|_| ApplicationError::NotMeasured { what: names::INSTANCE_ID })?;
        let key_provider_info = String::from_utf8_lossy(&measured(names::KEY_PROVIDER)?).into_owned();
        if key_provider_info != document.provider_info() {
            return Err(ApplicationError::NotMeasured { what: names::KEY_PROVIDER });
        }
        let stated = vm_config.os_image_hash.map(|hash| hash.as_bytes().to_vec());
        let os_image_hash = log.boot_payload(names::OS_IMAGE_HASH).or(stated).unwrap_or_default();
        let is_simulated = vm_config.simulated_tee.is_some();
        Ok(Self {
            compose,
            app_id,
            instance_id,
            os_image_hash,
            key_provider_info,
            sys_config_text,
            sys_config,
            is_simulated,
            keys,
            epoch_keys,
            document,
        })
    }

    /// Digest rule of its runtime events.
    #[must_use]
    pub fn event_version(&self) -> EventVersion {
        event_version(&self.compose)
    }
}

fn read(share: &Path, file: SharedFile) -> Result<Vec<u8>, ApplicationError> {
    let path = share.join(file.name);
    let mut bytes = Vec::new();
    let opened = fs::File::open(&path).and_then(|opened| opened.take(file.max_bytes + 1).read_to_end(&mut bytes));
    match opened {
        Err(source) => Err(ApplicationError::Read { path, source }),
        Ok(_) if bytes.len() as u64 > file.max_bytes => Err(ApplicationError::TooLong { path, max_bytes: file.max_bytes }),
        Ok(_) => Ok(bytes),
    }
}
