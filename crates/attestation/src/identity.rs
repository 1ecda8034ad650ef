//! What a log says the VM is, and the digests that stand for a whole VM.

use std::fmt;

use dstack_event_log::{Digest384, EventLog, RuntimeEvent, names};
use dstack_manifest::{
    AppId, ComposeHash, InstanceId, KeyProviderKind, MrConfigDocument, OsImageHash, mr_config_id_v1, mr_config_id_v2, mr_config_id_v3,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{Reason, TdFields, VerifiedPlatform};

/// Where an application's keys come from, as measured: JSON `{"name","id"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProvider {
    /// `kms`, `local-sgx`, `tpm` or `none`.
    pub name: String,
    /// For `kms` the SPKI DER of its root CA.
    pub id: Vec<u8>,
    /// The measured payload, byte for byte.
    pub raw: Vec<u8>,
}

/// Identity of a VM: under TDX as measured into RTMR3 before `system-ready`, under SEV-SNP as bound to the launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Application.
    pub app_id: Option<AppId>,
    /// Its document.
    pub compose_hash: Option<ComposeHash>,
    /// Its instance; [`InstanceId::NONE`] where there is none (or none yet).
    pub instance_id: InstanceId,
    /// Key provider, once measured.
    pub key_provider: Option<KeyProvider>,
    /// OS image the guest measured after it had keys from a KMS. The image that the registers prove is
    /// [`VerifiedEvidence::os_image_hash`](crate::VerifiedEvidence::os_image_hash).
    pub measured_os_image_hash: Option<OsImageHash>,
    /// `boot-mr-done` was measured: what follows is not part of the boot-time identity.
    pub boot_time_complete: bool,
}

/// An identity event of the wrong form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {event} has a payload of the wrong form ({length} bytes)")]
pub struct ClaimError {
    /// Name of the event.
    pub event: &'static str,
    /// Length of its payload.
    pub length: usize,
}

impl Claims {
    pub(crate) fn from_log(log: &EventLog) -> Result<Self, ClaimError> {
        Ok(Self {
            app_id: read(log, names::APP_ID, |bytes| AppId::try_from(bytes).ok())?,
            compose_hash: read(log, names::COMPOSE_HASH, |bytes| ComposeHash::try_from(bytes).ok())?,
            instance_id: read(log, names::INSTANCE_ID, |bytes| InstanceId::try_from(bytes).ok())?.unwrap_or(InstanceId::NONE),
            key_provider: read(log, names::KEY_PROVIDER, parse_key_provider)?,
            measured_os_image_hash: read(log, names::OS_IMAGE_HASH, |bytes| OsImageHash::try_from(bytes).ok())?,
            boot_time_complete: log.boot_payload(names::BOOT_MR_DONE).is_some(),
        })
    }

    /// What `events` say of a VM. They are worth as much as the register that covers them, which the caller has compared.
    ///
    /// Errors: the log or an identity event is malformed.
    pub fn from_runtime_events(events: &[RuntimeEvent]) -> Result<Self, Reason> {
        let log = EventLog::new(events.iter().map(RuntimeEvent::to_event).collect())?;
        Ok(Self::from_log(&log)?)
    }

    /// What the host bound to the launch of an SNP guest. It is complete from the start; where keys come from is
    /// [`VerifiedEvidence::launch_document`](crate::VerifiedEvidence::launch_document)'s, as no event of such a guest is signed.
    pub(crate) fn from_launch(document: &MrConfigDocument) -> Self {
        Self {
            app_id: document.app_id,
            compose_hash: Some(document.compose_hash),
            instance_id: document.instance_id.unwrap_or(InstanceId::NONE),
            key_provider: None,
            measured_os_image_hash: None,
            boot_time_complete: true,
        }
    }
}

/// App and document, on one line.
impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let app = self.app_id.map_or_else(|| "no app id".to_owned(), |app| format!("app {app}"));
        let compose = self.compose_hash.map_or_else(|| "no compose hash".to_owned(), |hash| format!("compose hash {hash}"));
        write!(f, "{app}, {compose}")
    }
}

fn read<T>(log: &EventLog, event: &'static str, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, ClaimError> {
    let Some(payload) = log.boot_payload(event) else { return Ok(None) };
    parse(&payload).map(Some).ok_or(ClaimError { event, length: payload.len() })
}

fn parse_key_provider(raw: &[u8]) -> Option<KeyProvider> {
    #[derive(Deserialize)]
    struct Payload {
        name: String,
        #[serde(default)]
        id: String,
    }
    let payload: Payload = serde_json::from_slice(raw).ok()?;
    Some(KeyProvider { name: payload.name, id: hex::decode(&payload.id).ok()?, raw: raw.to_vec() })
}

/// Which part of a VM's life a digest covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MrScope {
    /// The log up to and including `boot-mr-done`.
    BootTime,
    /// The whole log.
    Runtime,
}

/// `SHA-256(MRTD || RTMR0 || RTMR1 || RTMR2 || SHA-256(key provider payload))`; 32 zero bytes for the last where there is none.
///
/// `key_provider`: the measured payload; `None` for the boot-time form.
#[must_use]
pub fn mr_system(fields: &TdFields, key_provider: Option<&[u8]>) -> [u8; 32] {
    let provider = key_provider.map_or([0; 32], |payload| Sha256::digest(payload).into());
    let [rtmr0, rtmr1, rtmr2, _] = &fields.rtmr.0;
    Sha256::new()
        .chain_update(fields.mrtd)
        .chain_update(rtmr0)
        .chain_update(rtmr1)
        .chain_update(rtmr2)
        .chain_update(provider)
        .finalize()
        .into()
}

/// `SHA-256(MRTD || RTMR0 || RTMR1 || RTMR2 || RTMR3)`, followed inside the hash by MRCONFIGID, MROWNER and MROWNERCONFIG if one of them is not zero.
///
/// `rtmr3`: the replayed value of the scope in question.
#[must_use]
pub fn mr_aggregated(fields: &TdFields, rtmr3: &Digest384) -> [u8; 32] {
    let [rtmr0, rtmr1, rtmr2, _] = &fields.rtmr.0;
    let mut hash = Sha256::new().chain_update(fields.mrtd).chain_update(rtmr0).chain_update(rtmr1).chain_update(rtmr2).chain_update(rtmr3);
    let configured = [&fields.mr_config_id, &fields.mr_owner, &fields.mr_owner_config];
    if configured.iter().any(|field| field.iter().any(|byte| *byte != 0)) {
        for field in configured {
            hash.update(field);
        }
    }
    hash.finalize().into()
}

/// `SHA-256` of the machine's raw id: the same for all guests of one machine. Of the empty text where the evidence names none.
#[must_use]
pub fn device_id(platform: &VerifiedPlatform) -> [u8; 32] {
    Sha256::digest(platform.hardware_id().unwrap_or_default()).into()
}

/// Result of comparing MRCONFIGID with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MrConfigIdMatch {
    Agrees(&'static str),
    NotSet,
    Undecided(&'static str),
    Differs,
}

/// The version 3 document that a `vm_config` carries.
pub(crate) fn mr_config_document(vm_config: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        mr_config: Option<String>,
    }
    serde_json::from_str::<Config>(vm_config).ok()?.mr_config
}

/// Compares MRCONFIGID with what was measured. `document`: of version 3, untrusted; its bytes are hashed as they are.
pub(crate) fn match_mr_config_id(id: &[u8; 48], claims: &Claims, document: Option<&str>) -> MrConfigIdMatch {
    use MrConfigIdMatch::{Agrees, Differs, NotSet, Undecided};
    match (id.first(), claims.compose_hash, claims.app_id) {
        _ if id.iter().all(|byte| *byte == 0) => NotSet,
        (Some(1), Some(compose_hash), _) => {
            if mr_config_id_v1(&compose_hash) == *id {
                Agrees("version 1: the compose hash")
            } else {
                Differs
            }
        }
        (Some(2), Some(compose_hash), Some(app_id)) => match &claims.key_provider {
            None => Undecided("version 2 covers the key provider, which is not measured yet"),
            Some(provider) => match kind(&provider.name) {
                Some(kind) if mr_config_id_v2(&compose_hash, &app_id, kind, &provider.id) == *id => {
                    Agrees("version 2: compose hash, app id and key provider")
                }
                _ => Differs,
            },
        },
        (Some(3), ..) => match document {
            None => Undecided("version 3 needs its document, which the evidence does not carry"),
            Some(document) if mr_config_id_v3(document) != *id => Differs,
            Some(document) => match MrConfigDocument::parse(document) {
                Ok(document) if agrees(&document, claims) => Agrees("version 3: its document, which agrees with the measured identity"),
                _ => Differs,
            },
        },
        _ => Differs,
    }
}

/// Whether the measured identity is the one the VM was launched for. What one of the two does not name is not compared.
fn agrees(document: &MrConfigDocument, claims: &Claims) -> bool {
    let instance = claims.instance_id != InstanceId::NONE;
    claims.compose_hash == Some(document.compose_hash)
        && document.app_id.is_none_or(|app_id| claims.app_id == Some(app_id))
        && (!instance || document.instance_id.as_ref().is_none_or(|instance_id| *instance_id == claims.instance_id))
        && claims.key_provider.as_ref().is_none_or(|provider| {
            kind(&provider.name) == Some(document.key_provider)
                && (document.key_provider_id.is_empty() || document.key_provider_id == provider.id)
        })
}

fn kind(name: &str) -> Option<KeyProviderKind> {
    match name {
        "none" => Some(KeyProviderKind::None),
        "local-sgx" | "local" => Some(KeyProviderKind::Local),
        "kms" => Some(KeyProviderKind::Kms),
        "tpm" => Some(KeyProviderKind::Tpm),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
