//! What a guest finds on port 4050.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use dstack_api::tee_simulator::{Extend, QuoteAnswer, QuoteRequest, SealingKeyAnswer, SealingKeyRequest};
use dstack_rpc::{Caller, Peer, error_response};

use crate::{QuoteBody, QuotingEnclave, SimulatorError, TdRecord, TdStore, Vendor};

/// Which TD a connection belongs to.
#[derive(Debug, Clone)]
pub(crate) enum Whose {
    /// The listener is one TD's own socket.
    Td(String),
    /// The kernel tells by CID.
    Cid,
}

#[derive(Clone)]
struct Device {
    store: Arc<TdStore>,
    vendor: Arc<Vendor>,
    whose: Whose,
}

/// What the TD `vm_id` of `store` finds; for tests that have no image to boot.
pub fn device_of(store: Arc<TdStore>, vendor: Arc<Vendor>, vm_id: &str) -> Router {
    router(store, vendor, Whose::Td(vm_id.to_owned()))
}

pub(crate) fn router(store: Arc<TdStore>, vendor: Arc<Vendor>, whose: Whose) -> Router {
    Router::new()
        .route("/td", get(state))
        .route("/extend", post(extend))
        .route("/quote", post(quote))
        .route("/sealing-key", post(sealing_key))
        .with_state(Device { store, vendor, whose })
}

impl Device {
    async fn vm_id(&self, caller: &Caller) -> Result<String, SimulatorError> {
        match (&self.whose, caller.peer) {
            (Whose::Td(vm_id), _) => Ok(vm_id.clone()),
            (Whose::Cid, Peer::Vsock { cid }) => {
                let found =
                    self.store.all().await.into_iter().find(|(_, record)| record.launch.listen.is_empty() && record.launch.cid == cid);
                found.map(|(vm_id, _)| vm_id).ok_or(SimulatorError::NoSuchCid { cid })
            }
            (Whose::Cid, _) => Err(SimulatorError::NoSuchCid { cid: 0 }),
        }
    }

    async fn record(&self, caller: &Caller) -> Result<TdRecord, SimulatorError> {
        self.store.get(&self.vm_id(caller).await?).await
    }
}

async fn state(State(device): State<Device>, caller: Caller) -> Response {
    reply(device.record(&caller).await.map(|record| Json(record.state())))
}

async fn extend(State(device): State<Device>, caller: Caller, Json(request): Json<Extend>) -> Response {
    let extended = async {
        let digest = request.digest.as_slice().try_into().map_err(|_| SimulatorError::Field { field: "digest", expected: "48 bytes" })?;
        device.store.extend(&device.vm_id(&caller).await?, request.index, digest).await
    };
    reply(extended.await.map(|record| Json(record.state())))
}

async fn quote(State(device): State<Device>, caller: Caller, Json(request): Json<QuoteRequest>) -> Response {
    let quoted = async {
        let report_data: [u8; 64] =
            request.report_data.as_slice().try_into().map_err(|_| SimulatorError::Field { field: "report_data", expected: "64 bytes" })?;
        let record = device.record(&caller).await?;
        let body = QuoteBody::new(record.registers.mrtd, record.registers.rtmr, record.mr_config_id(), report_data);
        Ok(QuoteAnswer { quote: QuotingEnclave::new(&device.vendor).quote(&body) })
    };
    reply(quoted.await.map(Json))
}

async fn sealing_key(State(device): State<Device>, caller: Caller, Json(request): Json<SealingKeyRequest>) -> Response {
    let derived = device.record(&caller).await.map(|record| {
        let key = device.vendor.sealing_key(&record.registers, &record.mr_config_id(), &request.label);
        Json(SealingKeyAnswer { key: key.to_vec() })
    });
    reply(derived)
}

pub(crate) fn reply<T: axum::response::IntoResponse>(result: Result<T, SimulatorError>) -> Response {
    match result {
        Ok(answer) => answer.into_response(),
        Err(error) => {
            tracing::warn!(%error, "request refused");
            error_response(&error.to_rpc())
        }
    }
}
