//! What the service bears: too many calls, and what whoever watches can see.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::kms::{Empty, GetAppKeyRequest, KmsClient};
use dstack_kms::config::LimitsFile;
use http::StatusCode;
use testbed::{Guest, Stack, connect};

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_calls_too_often_is_told_so_and_health_stays_visible() {
    let stack = Stack::start().await;
    let mut settings = stack.settings();
    settings.limits = LimitsFile { per_source: 5, ..LimitsFile::default() };
    let kms = stack.kms_with(settings).await;
    let client = kms.anonymous();

    let mut refused = None;
    for _ in 0..20 {
        let answer = client.get("/prpc/GetMeta").await.unwrap();
        if answer.status != StatusCode::OK {
            refused = Some(answer);
            break;
        }
    }

    let refused = refused.expect("twenty calls at once were let through");
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let error: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(error["code"], "kms/rate-limited");
    assert!(!error["fix"].as_str().unwrap().is_empty());
    assert_eq!(client.get("/log/checkpoint").await.unwrap().status, StatusCode::TOO_MANY_REQUESTS, "all of it counts");
    for path in ["/health", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(client.get(path).await.unwrap().status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_calls_too_often_does_not_slow_others() {
    let stack = Stack::start().await;
    stack.allow(&[&Guest::new(1), &Guest::new(2)]);
    let mut settings = stack.settings();
    settings.limits = LimitsFile { per_app: 2, ..LimitsFile::default() };
    let kms = stack.kms_with(settings).await;
    let (one, two) = (connect(&kms.url, &stack.guest(1)).await, connect(&kms.url, &stack.guest(2)).await);
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };

    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.extend(one.get_app_key(&request).await.err().map(|error| error.code));
    }

    assert!(codes.iter().any(|code| code == "kms/rate-limited"), "{codes:?}");
    assert!(two.get_app_key(&request).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_say_what_happened_and_can_be_switched_off() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };
    connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();
    assert!(connect(&kms.url, &stack.guest(2)).await.get_app_key(&request).await.is_err());

    let page = String::from_utf8(kms.anonymous().get("/metrics").await.unwrap().body).unwrap();

    for line in [
        "dstack_kms_releases_total{method=\"GetAppKey\"} 1",
        "dstack_kms_refusals_total{code=\"kms/app-not-allowed\"} 1",
        "dstack_kms_release_seconds_count 1",
        "dstack_kms_unlogged_releases_total 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    kms.stop().await;
    let mut settings = stack.settings();
    settings.limits.metrics = false;
    let kms = stack.kms_with(settings).await;
    assert_eq!(kms.anonymous().get("/metrics").await.unwrap().status, StatusCode::NOT_FOUND);
    assert!(KmsClient(kms.anonymous()).get_meta(&Empty {}).await.is_ok());
}
