//! A policy service that allows everything at once.

use axum::{Json, Router, routing::any};
use dstack_api::policy_webhook::PolicyAnswer;
use dstack_kms::config::{ConfigFile, WebhookFile};
use dstack_rpc::Listener;

use crate::testbed::Stack;

/// Starts it in this process; returns its address.
pub(crate) async fn start() -> String {
    let answer = PolicyAnswer { is_allowed: true, gateway_app_id: Some("09".repeat(20)), reason: None };
    let router = Router::new().fallback(any(async move || Json(answer.clone())));
    let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    url
}

/// Another KMS beside the stack's, which asks the service at `url`.
pub(crate) fn asking(stack: &Stack, url: String, mut settings: ConfigFile) -> ConfigFile {
    settings.cert_dir = stack.path("kms-asking");
    settings.allow_list = None;
    settings.webhook = Some(WebhookFile { url, timeout_ms: 2000 });
    settings.danger.webhook_decides_simulated = true;
    settings
}
