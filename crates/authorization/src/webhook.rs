//! The `webhook` backend: asks an HTTP service, see [`dstack_api::policy_webhook`].
//!
//! The service is trusted to decide and with nothing else: it may hang, send anything of any length, or point elsewhere. Every way in
//! which it does not answer "allowed" in time is a no.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dstack_api::policy_webhook::{BOOT_AUTH_APP, BOOT_AUTH_KMS, PolicyAnswer, PolicyServerInfo};
use dstack_manifest::AppId;
use dstack_rpc::{Answer, Client, Endpoint};
use dstack_service::text::clean;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::{Backend, BootFacts, Decision, Denial, Permission, Subject, wire::boot_info};

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Longest reason that is kept.
const MAX_REASON_BYTES: usize = 500;
/// Connections that are kept open.
const KEPT_CONNECTIONS: usize = 8;
const USER_AGENT: &str = concat!("dstack-kms/", env!("CARGO_PKG_VERSION"));

/// A policy service.
#[derive(Debug)]
pub struct Webhook {
    /// Each keeps one connection.
    clients: Vec<Client>,
    next: AtomicUsize,
    base: String,
    accepts_simulated: bool,
    gateway_app_id: Mutex<Option<AppId>>,
}

impl Webhook {
    /// A client of the service at `endpoint`; nobody is contacted yet. `timeout`: for one whole answer. `accepts_simulated`: a setting
    /// under `[danger]`; without it the service is not even asked about evidence of a software TEE.
    #[must_use]
    pub fn new(endpoint: &Endpoint, timeout: Duration, accepts_simulated: bool) -> Self {
        let tls = dstack_rpc::system_tls();
        let client = || {
            let client = Client::new(endpoint.clone()).with_tls(tls.clone());
            client.with_timeout(timeout).with_answer_limit(MAX_ANSWER_BYTES)
        };
        if accepts_simulated {
            tracing::warn!(setting = "danger.allow_simulated", "the policy service is asked about simulated evidence");
        }
        Self {
            clients: (0..KEPT_CONNECTIONS).map(|_| client()).collect(),
            next: AtomicUsize::new(0),
            base: endpoint.base().to_owned(),
            accepts_simulated,
            gateway_app_id: Mutex::default(),
        }
    }

    /// Asks the service who the gateway is, for [`Backend::gateway_app_id`] before the first decision.
    ///
    /// Errors: no usable answer.
    pub async fn refresh(&self) -> Result<(), Denial> {
        let answer = self.exchange(Method::GET, "/", Vec::new()).await?;
        let info: PolicyServerInfo = decode(&answer.body)?;
        self.remember(parse_gateway(&info.gateway_app_id)?);
        Ok(())
    }

    async fn ask(&self, subject: Subject, facts: &BootFacts) -> Result<Permission, Denial> {
        let path = match subject {
            Subject::App | Subject::Certificate => BOOT_AUTH_APP,
            Subject::Kms => BOOT_AUTH_KMS,
        };
        let body = serde_json::to_vec(&boot_info(facts)).map_err(|error| unavailable(error.to_string()))?;
        let answer: PolicyAnswer = decode(&self.exchange(Method::POST, path, body).await?.body)?;
        if !answer.is_allowed {
            return Err(Denial::Backend { reason: clean(answer.reason.as_deref().unwrap_or("no reason given"), MAX_REASON_BYTES) });
        }
        let gateway_app_id = parse_gateway(answer.gateway_app_id.as_deref().unwrap_or_default())?;
        self.remember(gateway_app_id);
        Ok(Permission { gateway_app_id, staleness: Duration::ZERO })
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Denial> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len().max(1);
        let client = self.clients.get(index).ok_or_else(|| unavailable("no client".to_owned()))?;
        let headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
        ]);
        let answer = client.request(method, &format!("{}{path}", self.base), headers, body).await;
        let answer = answer.map_err(|error| unavailable(dstack_service::report::Report::new(&error).cause))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        // A redirect is one of these: whoever answers elsewhere was not configured.
        Err(unavailable(format!("HTTP {}: {}", answer.status, clean(&String::from_utf8_lossy(&answer.body), MAX_REASON_BYTES))))
    }

    fn remember(&self, gateway_app_id: Option<AppId>) {
        *self.gateway_app_id.lock().unwrap_or_else(PoisonError::into_inner) = gateway_app_id;
    }
}

impl Backend for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn decide<'a>(&'a self, subject: Subject, facts: &'a BootFacts) -> Decision<'a> {
        Box::pin(self.ask(subject, facts))
    }

    fn gateway_app_id(&self) -> Option<AppId> {
        *self.gateway_app_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepts_simulated(&self) -> bool {
        self.accepts_simulated
    }
}

fn unavailable(reason: String) -> Denial {
    Denial::Unavailable { reason: clean(&reason, MAX_REASON_BYTES) }
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Denial> {
    serde_json::from_slice(body).map_err(|error| unavailable(format!("the answer is not understood: {error}")))
}

/// `any` means every app in old test systems; an app must not take just anyone for its gateway, so it is nobody.
fn parse_gateway(text: &str) -> Result<Option<AppId>, Denial> {
    match text {
        "" | "any" => Ok(None),
        id => id.parse().map(Some).map_err(|error| unavailable(format!("gatewayAppId: {error}"))),
    }
}
