//! The policy as a service: when it is asked, and what its answers and failures do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Json, Router, extract::State, routing::any};
use dstack_api::{
    RpcError,
    kms::{AppId as AppIdMessage, AppKeyResponse, Empty, GetAppKeyRequest, KmsClient, SignCertRequest},
    policy_webhook::PolicyAnswer,
};
use dstack_kms::config::{ConfigFile, WebhookFile};
use dstack_rpc::Listener;
use testbed::{Guest, Kms, Stack};

#[derive(Clone, Default)]
struct Service {
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<PolicyAnswer>>,
}

impl Service {
    /// Address of a service that counts every request and answers each the same.
    async fn start(&self) -> String {
        let router = Router::new().fallback(any(Self::reply)).with_state(self.clone());
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
        url
    }

    async fn reply(State(service): State<Self>) -> Json<PolicyAnswer> {
        service.asked.fetch_add(1, Ordering::SeqCst);
        Json(service.answer.lock().unwrap().clone())
    }

    fn answers(&self, is_allowed: bool, reason: &str) {
        *self.answer.lock().unwrap() = PolicyAnswer { is_allowed, gateway_app_id: Some("09".repeat(20)), reason: Some(reason.to_owned()) };
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn settings(stack: &Stack, url: &str) -> ConfigFile {
    let mut settings = stack.settings();
    settings.allow_list = None;
    settings.webhook = Some(WebhookFile { url: url.to_owned(), timeout_ms: 2000 });
    settings.danger.webhook_decides_simulated = true;
    settings
}

async fn get_app_key(kms: &Kms, guest: &Guest) -> Result<AppKeyResponse, RpcError> {
    kms.connect(guest)
        .await
        .get_app_key(&GetAppKeyRequest { api_version: 1, vm_config: guest.vm_config_text(), ..Default::default() })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_decides_and_its_reason_is_not_told() {
    let (stack, service) = (Stack::start().await, Service::default());
    let kms = stack.kms_with(settings(&stack, &service.start().await)).await;

    service.answers(true, "");
    let keys = get_app_key(&kms, &stack.guest(1)).await.unwrap();
    assert_eq!(keys.gateway_app_id, "09".repeat(20));

    service.answers(false, "customer 17 owes money");
    let told = get_app_key(&kms, &stack.guest(1)).await.unwrap_err();
    assert_eq!((told.code.as_str(), told.message.as_str()), ("kms/policy-denied", "Boot denied"));
    assert!(!told.fix.contains("customer"));
}

/// Whoever proved nothing must not make the KMS call anybody, whatever is sent.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cause_no_call() {
    let (stack, service) = (Stack::start().await, Service::default());
    service.answers(true, "");
    let kms = stack.kms_with(settings(&stack, &service.start().await)).await;
    let before = service.asked();
    let anonymous = KmsClient(kms.anonymous());

    let _ = anonymous.get_meta(&Empty {}).await.unwrap();
    let _ = anonymous.get_temp_ca_cert(&Empty {}).await.unwrap();
    let _ = anonymous.get_app_env_encrypt_pub_key(&AppIdMessage { app_id: vec![1; 20], ..Default::default() }).await.unwrap();
    assert!(anonymous.get_app_key(&GetAppKeyRequest::default()).await.is_err());
    assert!(anonymous.sign_cert(&SignCertRequest { api_version: 2, ..Default::default() }).await.is_err());
    let mut disbelieved = stack.guest(1);
    disbelieved.tamper_body = |body| body.td_attributes[0] |= 1;
    assert!(get_app_key(&kms, &disbelieved).await.is_err());
    let mut unfinished = stack.guest(1);
    unfinished.boot_done = false;
    assert_eq!(get_app_key(&kms, &unfinished).await.unwrap_err().code, "kms/boot-incomplete");
    assert_eq!(service.asked(), before);

    assert!(get_app_key(&kms, &stack.guest(1)).await.is_ok());
    assert_eq!(service.asked(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_evidence_is_not_even_asked_about_without_the_danger_setting() {
    let (stack, service) = (Stack::start().await, Service::default());
    service.answers(true, "");
    let mut settings = settings(&stack, &service.start().await);
    settings.danger.webhook_decides_simulated = false;
    let kms = stack.kms_with(settings).await;
    let before = service.asked();

    assert_eq!(get_app_key(&kms, &stack.guest(1)).await.unwrap_err().code, "kms/simulated-not-allowed");
    assert_eq!(service.asked(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_service_nothing_is_released_and_the_rest_goes_on() {
    let stack = Stack::start().await;
    let kms = stack.kms_with(settings(&stack, "http://127.0.0.1:1")).await;

    assert_eq!(get_app_key(&kms, &stack.guest(1)).await.unwrap_err().code, "kms/policy-unavailable");
    assert!(KmsClient(kms.anonymous()).get_meta(&Empty {}).await.is_ok());
}
