//! The HTTP routes. They convert and delegate.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    routing::{delete, get, post},
};
use dstack_api::{
    RpcError,
    supervisor::{Answer, ProcessConfig, ProcessInfo},
};
use serde::Deserialize;
use tokio::sync::watch;

use crate::{Error, Supervisor};

const BODY_LIMIT: usize = 1 << 20;
/// Longest grace a caller may ask for.
const MAX_GRACE: Duration = Duration::from_secs(600);

#[derive(Clone)]
struct Api {
    supervisor: Arc<Supervisor>,
    quit: watch::Sender<bool>,
}

#[derive(Deserialize)]
struct StopQuery {
    grace_ms: Option<u64>,
}

/// The API. `quit` becomes true when a caller has asked for shutdown and every process has been stopped.
pub fn router(supervisor: Arc<Supervisor>, quit: watch::Sender<bool>) -> Router {
    Router::new()
        .route("/deploy", post(deploy))
        .route("/start/{id}", post(start))
        .route("/stop/{id}", post(stop))
        .route("/remove/{id}", delete(remove))
        .route("/list", get(list))
        .route("/info/{id}", get(info))
        .route("/ping", get(ping))
        .route("/clear", post(clear))
        .route("/shutdown", post(shutdown))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Api { supervisor, quit })
}

fn answer<T>(result: Result<T, Error>) -> Json<Answer<T>> {
    Json(match result {
        Ok(data) => Answer::Data(data),
        Err(error) => Answer::Error(RpcError::from_user_facing(&error).message),
    })
}

async fn deploy(State(api): State<Api>, Json(config): Json<ProcessConfig>) -> Json<Answer<()>> {
    answer(api.supervisor.deploy(config).await)
}

async fn start(State(api): State<Api>, Path(id): Path<String>) -> Json<Answer<()>> {
    answer(api.supervisor.start(&id).await)
}

async fn stop(State(api): State<Api>, Path(id): Path<String>, Query(query): Query<StopQuery>) -> Json<Answer<()>> {
    let grace = query.grace_ms.map_or(api.supervisor.grace(), Duration::from_millis).min(MAX_GRACE);
    answer(api.supervisor.stop(&id, grace).await)
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Json<Answer<()>> {
    answer(api.supervisor.remove(&id).await)
}

async fn list(State(api): State<Api>) -> Json<Answer<Vec<ProcessInfo>>> {
    Json(Answer::Data(api.supervisor.list()))
}

async fn info(State(api): State<Api>, Path(id): Path<String>) -> Json<Answer<Option<ProcessInfo>>> {
    Json(Answer::Data(api.supervisor.info(&id)))
}

async fn ping() -> Json<Answer<&'static str>> {
    Json(Answer::Data("pong"))
}

async fn clear(State(api): State<Api>) -> Json<Answer<()>> {
    answer(api.supervisor.clear().await)
}

async fn shutdown(State(api): State<Api>) -> Json<Answer<()>> {
    let result = api.supervisor.shut_down().await;
    if result.is_ok() {
        api.quit.send_replace(true);
    }
    answer(result)
}
