//! The routes.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use dstack_api::{
    RpcError, UserFacing as _,
    verifier::{Health, VerifyResponse},
};
use http::{HeaderValue, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::Semaphore;

use crate::{Refusal, Verification, config::ConfigFile, metrics::Metrics};

/// Bodies that may be in memory together, in units of the largest one.
const BODIES: usize = 8;

struct Service {
    verification: Verification,
    metrics: Metrics,
    limits: Limits,
    requests: Semaphore,
    /// Bytes of bodies that may still be read.
    bodies: Semaphore,
}

struct Limits {
    body_bytes: usize,
    requests: usize,
    timeout: std::time::Duration,
}

/// `POST /verify`, `GET /health`, `GET /metrics`.
pub fn router(verification: Verification, file: &ConfigFile) -> Router {
    let limits = Limits {
        body_bytes: file.max_body_kib << 10,
        requests: file.max_requests,
        timeout: std::time::Duration::from_secs(file.request_timeout_secs),
    };
    let service = Service {
        verification,
        metrics: Metrics::default(),
        requests: Semaphore::new(limits.requests),
        bodies: Semaphore::new(limits.body_bytes.saturating_mul(BODIES).min(Semaphore::MAX_PERMITS)),
        limits,
    };
    Router::new()
        .route("/verify", post(verify))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_route)
        .with_state(Arc::new(service))
}

async fn health() -> Json<Health> {
    Json(Health { status: "ok".to_owned(), service: "dstack-verifier".to_owned() })
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let (collateral, downloads) = service.verification.counters();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], service.metrics.render(collateral, downloads)).into_response()
}

async fn no_route(State(service): State<Arc<Service>>, request: Request) -> Response {
    service.refuse(&Refusal::NoRoute { path: request.uri().path().chars().take(100).collect() })
}

async fn verify(State(service): State<Arc<Service>>, request: Request) -> Response {
    let (_open, began) = (service.metrics.begin(), Instant::now());
    let timeout = service.limits.timeout;
    let answer = tokio::time::timeout(timeout, service.answer(request)).await.unwrap_or(Err(Refusal::TooSlow(timeout)));
    match answer {
        Ok(answer) => {
            service.metrics.judged(&answer.verdict, began.elapsed());
            Json(answer).into_response()
        }
        Err(refusal) => service.refuse(&refusal),
    }
}

impl Service {
    async fn answer(&self, request: Request) -> Result<VerifyResponse, Refusal> {
        let _request = self.requests.try_acquire().map_err(|_| Refusal::Busy { limit: self.limits.requests })?;
        let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let limit = self.limits.body_bytes;
        if announced.is_some_and(|length| length > limit) {
            return Err(Refusal::TooLarge { limit });
        }
        // A body without a length may become as long as any.
        let reserved = u32::try_from(announced.unwrap_or(limit)).unwrap_or(u32::MAX);
        let _body = self.bodies.try_acquire_many(reserved).map_err(|_| Refusal::Busy { limit: BODIES })?;
        let body = read(request.into_body(), limit).await?;
        self.verification.verify(body).await
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        self.metrics.refused(refusal.code());
        tracing::debug!(code = refusal.code(), error = %refusal, "request refused");
        let mut response = dstack_rpc::error_response(&RpcError::from_user_facing(refusal));
        *response.status_mut() = refusal.status();
        if matches!(refusal, Refusal::Busy { .. } | Refusal::TooSlow(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge { limit }),
        Err(_) => Err(Refusal::Incomplete),
    }
}
