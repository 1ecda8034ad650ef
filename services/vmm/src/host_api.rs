//! What guests may tell and ask their host. Guests are hostile: sizes, rates and characters are limited.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use dstack_api::{
    RpcError,
    host_api::{Empty, GetSealingKeyRequest, GetSealingKeyResponse, HostApiRpc, HostInfo, Notification},
    wire::guest_event,
};
use dstack_manifest::{InstanceInfo, host_share};
use dstack_rpc::{Caller, Peer};
use dstack_service::text::clean;

use crate::{Vmm, VmmError, db::VmRow};

const MAX_EVENT_NAME: usize = 64;
const MAX_PAYLOAD: usize = 4096;
const MAX_TIMELINE: usize = 16 << 10;
/// Notifications a guest may send at once, and per second after that.
const BURST: f64 = 64.0;
const PER_SECOND: f64 = 4.0;

/// The host API of one guest, or of all where the kernel tells them apart.
pub(crate) struct HostApi {
    vmm: Arc<Vmm>,
    vm_id: Option<String>,
    rates: Mutex<HashMap<String, Rate>>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    tokens: f64,
    at: Instant,
}

impl HostApi {
    pub(crate) fn for_vm(vmm: Arc<Vmm>, vm_id: String) -> Self {
        Self { vmm, vm_id: Some(vm_id), rates: Mutex::default() }
    }

    pub(crate) fn for_all(vmm: Arc<Vmm>) -> Self {
        Self { vmm, vm_id: None, rates: Mutex::default() }
    }

    /// Who calls: known by the socket, else by the CID that the kernel vouches for.
    fn vm(&self, caller: &Caller) -> Result<VmRow, RpcError> {
        let row = match (&self.vm_id, caller.peer) {
            (Some(id), _) => self.vmm.database.vm(id)?,
            (None, Peer::Vsock { cid }) => self.vmm.database.vm_by_cid(cid)?,
            (None, _) => None,
        };
        row.ok_or_else(|| RpcError::new("host/unknown-guest", "the caller is no guest of this host", "call from a VM of this host"))
    }

    fn admit(&self, id: &str) -> Result<(), RpcError> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rate = rates.entry(id.to_owned()).or_insert(Rate { tokens: BURST, at: now });
        rate.tokens = (rate.tokens + now.duration_since(rate.at).as_secs_f64() * PER_SECOND).min(BURST);
        rate.at = now;
        if rate.tokens < 1.0 {
            return Err(RpcError::new("host/too-many-notifications", "too many notifications", "send fewer"));
        }
        rate.tokens -= 1.0;
        Ok(())
    }

    fn notified(&self, row: &VmRow, notification: &Notification) -> Result<(), VmmError> {
        let Notification { event, payload } = notification;
        check(event, payload)?;
        let database = &self.vmm.database;
        let body = clean(payload, MAX_TIMELINE);
        match event.as_str() {
            guest_event::BOOT_PROGRESS => database.set_boot_progress(&row.id, &body)?,
            guest_event::BOOT_ERROR => {
                tracing::warn!(vm_id = row.id, boot_error = body, "guest reports a boot error");
                database.set_boot_error(&row.id, &body)?;
            }
            guest_event::SHUTDOWN_PROGRESS => {
                database.set_shutdown_progress(&row.id, &body)?;
                if body == guest_event::POWERING_OFF {
                    database.set_started(&row.id, false)?;
                }
            }
            guest_event::INSTANCE_INFO => database.set_instance_info(&row.id, &checked_instance_info(row, payload)?)?,
            _ => {}
        }
        database.add_event(&row.id, event, &body, self.vmm.config.event_buffer_size)
    }
}

fn check(event: &str, payload: &str) -> Result<(), VmmError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if event.is_empty() || event.len() > MAX_EVENT_NAME || !event.bytes().all(plain) {
        return Err(VmmError::field("event", format!("not 1 to {MAX_EVENT_NAME} of A-Z a-z 0-9 . _ -")));
    }
    let limit = match event {
        guest_event::BOOT_TIMELINE => MAX_TIMELINE,
        guest_event::INSTANCE_INFO => usize::try_from(host_share::INSTANCE_INFO.max_bytes).unwrap_or(MAX_PAYLOAD),
        _ => MAX_PAYLOAD,
    };
    if payload.len() > limit {
        return Err(VmmError::field("payload", format!("{} bytes, at most {limit} are taken", payload.len())));
    }
    Ok(())
}

/// The document as we write it, not as the guest wrote it.
fn checked_instance_info(row: &VmRow, payload: &str) -> Result<String, VmmError> {
    let bad = |reason: String| VmmError::field(guest_event::INSTANCE_INFO, reason);
    let info: InstanceInfo = serde_json::from_str(payload).map_err(|error| bad(error.to_string()))?;
    info.seed().map_err(|error| bad(error.to_string()))?;
    if info.app_id.is_some_and(|app_id| app_id.to_string() != row.app_id) {
        return Err(bad("its app id is not that of the VM".to_owned()));
    }
    serde_json::to_string(&info).map_err(|error| VmmError::Internal(error.to_string()))
}

impl HostApiRpc for HostApi {
    type Caller = Caller;

    async fn info(&self, caller: Caller, _: Empty) -> Result<HostInfo, RpcError> {
        self.vm(&caller)?;
        Ok(HostInfo { name: "dstack VMM".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    async fn notify(&self, caller: Caller, request: Notification) -> Result<Empty, RpcError> {
        let row = self.vm(&caller)?;
        self.admit(&row.id)?;
        self.notified(&row, &request)?;
        Ok(Empty {})
    }

    async fn get_sealing_key(&self, caller: Caller, _: GetSealingKeyRequest) -> Result<GetSealingKeyResponse, RpcError> {
        self.vm(&caller)?;
        Err(RpcError::not_implemented("GetSealingKey", "use the key provider kms"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn event_names_and_sizes_are_bounded() {
        assert!(check("boot.progress", "x").is_ok());
        for (event, payload) in [("", 0), ("a b", 0), (&*"x".repeat(65), 0), ("boot.progress", 4097), ("boot.timeline", 16385)] {
            assert!(check(event, &"x".repeat(payload)).is_err(), "{event}");
        }
        assert!(check("boot.timeline", &"x".repeat(16384)).is_ok());
    }
}
