//! `tcb_info`: the registers of this TD with the log that explains them, as JSON text.

use dstack_api::RpcError;
use dstack_attestation::{TdFields, mr_aggregated};
use dstack_event_log::{Event, replay};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::application::Application;

/// Registers and log of one moment.
#[derive(Debug)]
pub(crate) struct TcbInfo {
    fields: TdFields,
    rtmr3: [u8; 48],
    events: Vec<Event>,
}

#[derive(Serialize)]
struct Document<'a> {
    mrtd: String,
    rtmr0: String,
    rtmr1: String,
    rtmr2: String,
    rtmr3: String,
    mr_aggregated: String,
    os_image_hash: String,
    compose_hash: String,
    device_id: String,
    event_log: &'a [Event],
    app_compose: String,
}

impl TcbInfo {
    /// `fields`: of any quote of this boot; RTMR3 is replayed from `events`, which the attester compared with the register.
    pub(crate) fn new(fields: TdFields, events: Vec<Event>) -> Result<Self, RpcError> {
        let runtime: Vec<Event> = events.iter().filter(|event| event.as_runtime().is_some()).cloned().collect();
        let registers = replay(&runtime).map_err(|error| RpcError::internal(format!("replay of the own log: {error}")))?;
        let [.., rtmr3] = registers.0;
        Ok(Self { fields, rtmr3, events })
    }

    /// Digest over all registers.
    pub(crate) fn mr_aggregated(&self) -> [u8; 32] {
        mr_aggregated(&self.fields, &self.rtmr3)
    }

    /// MRTD and RTMR0 to RTMR3 with their names.
    pub(crate) fn registers(&self) -> [(&'static str, String); 5] {
        let [rtmr0, rtmr1, rtmr2, _] = &self.fields.rtmr.0;
        [
            ("MRTD", hex::encode(self.fields.mrtd)),
            ("RTMR0", hex::encode(rtmr0)),
            ("RTMR1", hex::encode(rtmr1)),
            ("RTMR2", hex::encode(rtmr2)),
            ("RTMR3", hex::encode(self.rtmr3)),
        ]
    }

    /// The JSON text.
    pub(crate) fn render(&self, application: &Application) -> Result<String, RpcError> {
        let [mrtd, rtmr0, rtmr1, rtmr2, rtmr3] = self.registers().map(|(_, value)| value);
        let document = Document {
            mrtd,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            mr_aggregated: hex::encode(self.mr_aggregated()),
            os_image_hash: hex::encode(&application.os_image_hash),
            compose_hash: application.compose.compose_hash().to_string(),
            device_id: hex::encode(device_id()),
            event_log: &self.events,
            app_compose: String::from_utf8_lossy(application.compose.raw()).into_owned(),
        };
        serde_json::to_string_pretty(&document).map_err(|error| RpcError::internal(error.to_string()))
    }
}

/// SHA-256 of nothing: a guest cannot know its machine for sure; only a verifier of its quote does.
pub(crate) fn device_id() -> [u8; 32] {
    Sha256::digest([]).into()
}
