//! What the VMM tells the software TEE.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    response::Response,
    routing::put,
};
use dstack_api::tee_simulator::{LaunchTd, TdState};

use crate::{SimulatorError, TdRecord, daemon::Shared, device::reply, launch, td::is_vm_id};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/td/{vm_id}", put(launch_td).get(state).delete(remove)).with_state(shared)
}

async fn launch_td(State(shared): State<Arc<Shared>>, Path(vm_id): Path<String>, Json(request): Json<LaunchTd>) -> Response {
    reply(start(&shared, &vm_id, request).await.map(Json))
}

async fn start(shared: &Arc<Shared>, vm_id: &str, request: LaunchTd) -> Result<TdState, SimulatorError> {
    if !is_vm_id(vm_id) {
        return Err(SimulatorError::VmId);
    }
    if request.mr_config_id.len() != 48 {
        return Err(SimulatorError::Field { field: "mr_config_id", expected: "48 bytes" });
    }
    shared.can_listen(&request)?;
    let measured = request.clone();
    let launched = tokio::task::spawn_blocking(move || launch::measure(&measured)).await;
    let launched = launched.map_err(|error| SimulatorError::Measure { what: "the image".to_owned(), reason: error.to_string() })??;
    let record = TdRecord::started(request, launched);
    shared.stop_device(vm_id).await;
    shared.store.put(vm_id, record.clone()).await?;
    if let Err(error) = shared.start_device(vm_id, &record).await {
        shared.store.remove(vm_id).await?;
        return Err(error);
    }
    tracing::info!(vm_id, mrtd = hex::encode(record.registers.mrtd), "TD launched");
    Ok(record.state())
}

async fn state(State(shared): State<Arc<Shared>>, Path(vm_id): Path<String>) -> Response {
    reply(shared.store.get(&vm_id).await.map(|record| Json(record.state())))
}

async fn remove(State(shared): State<Arc<Shared>>, Path(vm_id): Path<String>) -> Response {
    let removed = async {
        shared.store.get(&vm_id).await?;
        shared.stop_device(&vm_id).await;
        shared.store.remove(&vm_id).await?;
        tracing::info!(vm_id, "TD removed");
        Ok(Json(serde_json::json!({})))
    };
    reply(removed.await)
}
