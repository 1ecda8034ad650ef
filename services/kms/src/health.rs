//! Whether the service lives, whether it can do its work, and what it has done.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use crate::api::Kms;

/// `/health` and `/healthz` (the process answers), `/readyz` (releases are possible), `/metrics`. Not rate-limited: whoever watches
/// must see a service that is under load.
pub(crate) fn router(kms: Arc<Kms>, has_metrics: bool) -> Router {
    let router = Router::new().route("/health", get(alive)).route("/healthz", get(alive)).route("/readyz", get(ready));
    let router = if has_metrics { router.route("/metrics", get(metrics)) } else { router };
    router.with_state(kms)
}

async fn alive() -> &'static str {
    "OK"
}

/// Keys are loaded before the address is bound; what can fail later is the log. Policy and collateral are asked anew by each call.
async fn ready(State(kms): State<Arc<Kms>>) -> Response {
    if kms.audit.log.is_ready().await {
        return "OK".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the release log cannot be written\n").into_response()
}

async fn metrics(State(kms): State<Arc<Kms>>) -> Response {
    let page = kms.audit.metrics.render(kms.limiter.limited(), kms.audit.log.size());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page).into_response()
}
