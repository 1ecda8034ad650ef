//! A collateral service that takes its time.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
};
use dstack_rpc::{Client, Endpoint};
use dstack_testkit::software_tee::Running;

/// Answers as another service does, later.
pub(crate) struct SlowSource {
    pub(crate) url: String,
    _running: Running,
}

struct Upstream {
    client: Client,
    delay: Duration,
}

async fn answer(State(upstream): State<Arc<Upstream>>, request: Request) -> Response {
    tokio::time::sleep(upstream.delay).await;
    let path = request.uri().path_and_query().unwrap().as_str();
    let answer = upstream.client.get(path).await.unwrap();
    let mut response = Response::new(answer.body.into());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

impl SlowSource {
    pub(crate) async fn start(upstream: &str, delay: Duration) -> Self {
        let client = Client::new(Endpoint::parse(upstream).unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::new(Upstream { client, delay }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = |stopped: tokio::sync::oneshot::Receiver<()>| async move {
            axum::serve(listener, router).with_graceful_shutdown(async { drop(stopped.await) }).await.unwrap();
        };
        Self { url, _running: Running::start(serve) }
    }
}
