//! The listener and its routes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Form, Router,
    extract::State,
    middleware::from_fn_with_state,
    response::{Html, IntoResponse as _, Response},
    routing::{any, get, post},
};
use dstack_api::{
    RpcError,
    kms::{BootstrapRequest, OnboardRequest, OnboardRpc as _, OnboardServer},
};
use dstack_rpc::{Caller, GetPolicy, Listener};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::sync::Notify;

use super::{
    calls::Onboarding,
    page::{self, Notice},
};
use crate::{
    access::{self, Gate, is_foreign},
    config::{FirstStart, Settings},
    machine::Machine,
    server::StartError,
};

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// How an onboarding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onboarded {
    /// There are keys, and somebody finished it.
    Finished,
    /// The service was told to stop.
    Stopped,
}

/// The onboarding of a KMS without keys.
pub struct OnboardingServer {
    state: Arc<Onboarding>,
    gate: Arc<Gate>,
    listener: Listener,
}

impl OnboardingServer {
    /// The onboarding, if the settings ask for one and there are no keys.
    ///
    /// Errors: as [`Server::open`](crate::Server::open).
    pub async fn open(settings: &Settings) -> Result<Option<Self>, StartError> {
        let table = &settings.file.onboard;
        if table.first_start != FirstStart::Wait {
            return Ok(None);
        }
        let machine = Machine::open(settings).await?;
        let now = dstack_service::clock::unix_seconds();
        if machine.at(&settings.file.cert_dir, &settings.first_domain(), now, |site| site.load())?.is_some() {
            return Ok(None);
        }
        let gate = Arc::new(Gate::open(table.token_file.as_deref())?);
        let listener = Listener::tcp(table.listen).await?;
        let state = Onboarding {
            settings: settings.clone(),
            machine,
            busy: tokio::sync::Mutex::default(),
            finished: Notify::new(),
            is_finished: Mutex::default(),
            restore: Mutex::default(),
            restore_domain: Mutex::default(),
        };
        Ok(Some(Self { state: Arc::new(state), gate, listener }))
    }

    /// Address in use.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until somebody finishes the onboarding or `shutdown` completes.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Onboarded {
        let Self { state, gate, listener } = self;
        tracing::warn!(
            address = listener.local_addr().map(|address| address.to_string()),
            token = gate.needs_token(),
            "no keys: waiting to be onboarded"
        );
        let finished = Arc::clone(&state);
        let end = async {
            tokio::select! {
                () = shutdown => {}
                () = finished.finished.notified() => {}
            }
        };
        dstack_rpc::serve(listener, router(&state, gate), end).await;
        let is_finished = *state.is_finished.lock().unwrap_or_else(PoisonError::into_inner);
        if is_finished { Onboarded::Finished } else { Onboarded::Stopped }
    }
}

#[derive(Clone)]
struct Pages {
    state: Arc<Onboarding>,
    gate: Arc<Gate>,
}

fn router(state: &Arc<Onboarding>, gate: Arc<Gate>) -> Router {
    let pages = Pages { state: Arc::clone(state), gate: Arc::clone(&gate) };
    let calls =
        dstack_rpc::mount(dstack_api::wire::PRPC_BASE, OnboardServer(Arc::clone(state)), GetPolicy::ReadOnly(&["GetAttestationInfo"]))
            // Existing clients end the onboarding by opening this address.
            .merge(Router::new().route("/finish", any(finish)).with_state(pages.clone()))
            .layer(from_fn_with_state(gate, access::require_token));
    let forms = Router::new()
        .route("/", get(index))
        .route("/bootstrap", post(bootstrap))
        .route("/onboard", post(onboard))
        .route("/done", post(done))
        .with_state(pages);
    calls.merge(forms).route("/health", get(|| async { "OK" })).route("/healthz", get(|| async { "OK" }))
}

async fn finish(State(pages): State<Pages>) -> Response {
    match pages.state.finish_now() {
        Ok(()) => "OK".into_response(),
        Err(error) => dstack_rpc::error_response(&error),
    }
}

async fn index(State(pages): State<Pages>) -> Response {
    show(&pages, StatusCode::OK, None).await
}

/// Fields of all forms.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    token: String,
    #[serde(default)]
    domain: String,
    #[serde(default)]
    source_url: String,
}

async fn bootstrap(State(pages): State<Pages>, caller: Caller, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    let made = async {
        pages.admit(&headers, &fields)?;
        pages.state.bootstrap(caller, BootstrapRequest { domain: fields.domain.clone() }).await
    };
    let notice = made.await.map(|_| Notice::Done("New root keys were made on this machine."));
    answer(&pages, notice).await
}

async fn onboard(State(pages): State<Pages>, caller: Caller, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    let received = async {
        pages.admit(&headers, &fields)?;
        let request = OnboardRequest { source_url: fields.source_url.clone(), domain: fields.domain.clone() };
        pages.state.onboard(caller, request).await
    };
    let notice = received.await.map(|_| Notice::Done("The root keys were received from the other KMS."));
    answer(&pages, notice).await
}

async fn done(State(pages): State<Pages>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    let finished = pages.admit(&headers, &fields).and_then(|()| pages.state.finish_now());
    answer(&pages, finished.map(|()| Notice::Finished)).await
}

impl Pages {
    fn admit(&self, headers: &HeaderMap, fields: &Fields) -> Result<(), RpcError> {
        if is_foreign(headers) {
            return Err(RpcError::new(
                "kms/foreign-origin",
                "requests of another site's page are refused",
                "open this page under its own address",
            ));
        }
        if self.gate.admits(fields.token.trim()) {
            return Ok(());
        }
        Err(RpcError::new("kms/token", "the token is missing or wrong", "enter the first line of the token file of this KMS"))
    }
}

async fn answer(pages: &Pages, result: Result<Notice<'_>, RpcError>) -> Response {
    match result {
        Ok(notice) => show(pages, StatusCode::OK, Some(notice)).await,
        Err(error) => show(pages, StatusCode::BAD_REQUEST, Some(Notice::Failed(&error))).await,
    }
}

async fn show(pages: &Pages, status: StatusCode, notice: Option<Notice<'_>>) -> Response {
    let machine = pages.state.attestation_info().await;
    let keys = pages.state.present();
    let text = page::render(&page::Content {
        machine: machine.as_ref(),
        keys: keys.as_ref().map(Option::as_ref),
        domain: pages.state.settings.first_domain().as_str(),
        needs_token: pages.gate.needs_token(),
        notice,
    });
    let mut response = (status, Html(text)).into_response();
    for (name, value) in
        [(header::CONTENT_SECURITY_POLICY, POLICY), (header::CACHE_CONTROL, "no-store"), (header::REFERRER_POLICY, "same-origin")]
    {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
