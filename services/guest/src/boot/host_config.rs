//! First phase: the host's files are parsed and checked against each other. Nothing in them is trusted yet.

use dstack_api::UserFacing;
use dstack_manifest::{
    AppCompose, AppComposeError, AppId, HexError, InstanceId, InstanceInfo, KeyProviderKind, SysConfig, VmConfig, host_share as files,
};
use rand_core::{OsRng, RngCore as _};

use super::{
    host_share::{HostShareError, UnverifiedShare},
    layout::Layout,
    requirements::{self, RequirementError, Surroundings},
};
use crate::host_notify::HostAddress;

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostConfigError {
    /// The share.
    #[error(transparent)]
    Share(#[from] HostShareError),
    /// The application's document.
    #[error(transparent)]
    AppCompose(#[from] AppComposeError),
    /// Another document.
    #[error("{file} is not what it should be: {reason}")]
    Document {
        /// The file.
        file: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A demand of the application.
    #[error(transparent)]
    Requirement(#[from] RequirementError),
}

impl UserFacing for HostConfigError {
    fn code(&self) -> &'static str {
        match self {
            Self::Share(error) => error.code(),
            Self::AppCompose(_) => "guest/app-compose-refused",
            Self::Document { .. } => "guest/host-config-refused",
            Self::Requirement(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Share(error) => error.fix(),
            Self::AppCompose(_) => "correct app-compose.json at the position given and deploy again".to_owned(),
            Self::Document { .. } => "let the VMM write the share again: stop and start the VM".to_owned(),
            Self::Requirement(error) => error.fix(),
        }
    }
}

/// The host's configuration, parsed and consistent, not yet measured.
#[derive(Debug)]
pub struct HostConfigRead {
    /// The application.
    pub app: AppCompose,
    /// Its identity.
    pub app_id: AppId,
    /// Identity of this instance, or none.
    pub instance_id: InstanceId,
    /// 20 bytes the instance id comes from.
    pub instance_seed: [u8; 20],
    /// Addresses; untrusted.
    pub sys_config: SysConfig,
    /// Raw text of `.sys-config.json`, which goes into evidence.
    pub sys_config_text: String,
    /// The VM's shape as the host states it.
    pub vm_config: VmConfig,
    /// The sealed environment.
    pub encrypted_env: Option<Vec<u8>>,
}

impl HostConfigRead {
    /// Parses and checks the files of the share.
    ///
    /// Errors: the first file that is refused, or a demand that is not met.
    pub fn from_share(share: &UnverifiedShare, layout: &Layout) -> Result<Self, HostConfigError> {
        let app = AppCompose::parse(share.get(files::APP_COMPOSE).unwrap_or_default().to_vec())?;
        let sys_config_text = text(files::SYS_CONFIG.name, share.get(files::SYS_CONFIG).unwrap_or_default())?;
        let sys_config: SysConfig = serde_json::from_str(&sys_config_text).map_err(|error| refuse(files::SYS_CONFIG.name, error))?;
        let vm_config = sys_config.parse_vm_config().map_err(|error| refuse("vm_config in .sys-config.json", error))?;
        let info: InstanceInfo = match share.get(files::INSTANCE_INFO) {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| refuse(files::INSTANCE_INFO.name, error))?,
            None => InstanceInfo::default(),
        };
        let os_version = requirements::os_version(&layout.os_release());
        let user_config = share.get(files::USER_CONFIG);
        requirements::check(&app, Surroundings { vm_config: &vm_config, os_version: &os_version, user_config })?;
        let app_id = info.app_id.unwrap_or_else(|| app.compose_hash().default_app_id());
        let (instance_seed, instance_id) = instance(&app, &app_id, &info).map_err(|error| refuse(files::INSTANCE_INFO.name, error))?;
        let encrypted_env = share.get(files::ENCRYPTED_ENV).filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec);
        Ok(Self { app, app_id, instance_id, instance_seed, sys_config, sys_config_text, vm_config, encrypted_env })
    }

    /// Where the host API answers. An address we cannot speak to is ignored.
    #[must_use]
    pub fn host_address(&self) -> HostAddress {
        HostAddress::parse(&self.sys_config.host_api_url).unwrap_or(HostAddress::DEFAULT)
    }

    /// The document that is reported back to the host.
    #[must_use]
    pub fn instance_info(&self) -> InstanceInfo {
        InstanceInfo {
            instance_id_seed: Some(hex::encode(self.instance_seed)),
            instance_id: Some(self.instance_id),
            app_id: Some(self.app_id),
        }
    }
}

/// A provider that gives other keys at each boot gives another instance as well.
fn instance(app: &AppCompose, app_id: &AppId, info: &InstanceInfo) -> Result<([u8; 20], InstanceId), HexError> {
    let keep = app.document().key_provider() != KeyProviderKind::None;
    let seed = info.seed()?.filter(|_| keep).unwrap_or_else(|| {
        let mut fresh = [0_u8; 20];
        OsRng.fill_bytes(&mut fresh);
        fresh
    });
    let id = if app.document().no_instance_id { InstanceId::NONE } else { InstanceId::derive(&seed, app_id) };
    Ok((seed, id))
}

fn text(file: &'static str, bytes: &[u8]) -> Result<String, HostConfigError> {
    String::from_utf8(bytes.to_vec()).map_err(|error| refuse(file, error))
}

fn refuse(file: &'static str, reason: impl ToString) -> HostConfigError {
    HostConfigError::Document { file, reason: reason.to_string() }
}
