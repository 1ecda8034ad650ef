//! The public API: `Worker` below `/prpc`, evidence over a nonce, and a page for people.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Query, State as Shared},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use dstack_api::{
    RpcError,
    guest_agent::{AppInfo, Empty, GetQuoteResponse, WorkerRpc, WorkerServer, WorkerVersion},
    wire::{EVIDENCE_PATH, PRPC_BASE},
};
use dstack_rpc::{Caller, GetPolicy, error_response, mount};
use serde::{Deserialize, Serialize};

use super::{
    dashboard,
    evidence::Asker,
    inside,
    state::{State, version},
};

const APP_VERSION: HeaderName = HeaderName::from_static("x-app-version");

struct Outside(Arc<State>);

pub(crate) fn router(state: Arc<State>) -> Router {
    let pages = Router::new().route("/", get(page)).route(EVIDENCE_PATH, get(evidence)).with_state(Arc::clone(&state));
    mount(PRPC_BASE, WorkerServer(Arc::new(Outside(state))), GetPolicy::ReadOnly(&["Info", "Version"])).merge(pages)
}

impl WorkerRpc for Outside {
    type Caller = Caller;

    async fn info(&self, _caller: Caller, _request: Empty) -> Result<AppInfo, RpcError> {
        self.0.info(Asker::Outside).await
    }

    async fn version(&self, _caller: Caller, _request: Empty) -> Result<WorkerVersion, RpcError> {
        Ok(version())
    }
}

#[derive(Deserialize)]
struct Nonce {
    #[serde(default)]
    nonce: String,
}

#[derive(Serialize)]
struct PublicEvidence {
    #[serde(flatten)]
    quote: GetQuoteResponse,
    app_compose: String,
}

async fn evidence(Shared(state): Shared<Arc<State>>, Query(Nonce { nonce }): Query<Nonce>) -> Response {
    match public_evidence(&state, &nonce).await {
        Ok(json) => (headers("application/json"), json).into_response(),
        Err(error) => (headers("application/json"), error_response(&error)).into_response(),
    }
}

/// Half of the report data: the rest stays zero, so a stranger's nonce can never be the digest that binds a certificate or a request
/// to this guest.
const MAX_NONCE_BYTES: usize = 32;

async fn public_evidence(state: &State, nonce: &str) -> Result<Vec<u8>, RpcError> {
    if !state.application.compose.document().public_tcbinfo {
        let fix = "set public_tcbinfo in app-compose.json, or ask the application itself";
        return Err(RpcError::new("agent/evidence-private", "the application does not publish its evidence", fix));
    }
    let bytes = hex::decode(nonce.strip_prefix("0x").unwrap_or(nonce)).ok().filter(|bytes| (1..=MAX_NONCE_BYTES).contains(&bytes.len()));
    let Some(bytes) = bytes else {
        let fix = format!("GET {EVIDENCE_PATH}?nonce=<fresh random bytes, hex>");
        return Err(RpcError::new("agent/bad-nonce", "the nonce is not hex of 1 to 32 bytes", fix));
    };
    let quote = inside::quote(state, &bytes, Asker::Outside).await?;
    let app_compose = String::from_utf8_lossy(state.application.compose.raw()).into_owned();
    serde_json::to_vec(&PublicEvidence { quote, app_compose }).map_err(|error| RpcError::internal(error.to_string()))
}

async fn page(Shared(state): Shared<Arc<State>>) -> Response {
    match dashboard::render(&state).await {
        Ok(html) => (headers("text/html; charset=utf-8"), html).into_response(),
        Err(error) => (headers("application/json"), error_response(&error)).into_response(),
    }
}

fn headers(content_type: &'static str) -> HeaderMap {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        ),
        (APP_VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION"))),
    ]
    .into_iter()
    .collect()
}
