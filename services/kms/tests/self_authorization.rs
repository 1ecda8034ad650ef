//! A KMS releases keys only while the policy would accept this machine as a KMS.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::time::{Duration, Instant};

use dstack_api::{
    RpcError,
    kms::{AppId, Empty, GetAppKeyRequest, KmsClient},
};
use dstack_rpc::Client;
use testbed::{Guest, Stack, connect};

/// How long a yes may hold, with some patience for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn release(kms: &KmsClient<Client>) -> Result<usize, RpcError> {
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    kms.get_app_key(&request).await.map(|keys| keys.disk_crypt_key.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_the_policy_does_not_name_releases_nothing_until_it_is_named() {
    let stack = Stack::start().await;
    let machine = stack.machine("one").await;
    let kms = stack.kms_with(stack.settings_on(&machine)).await;
    let guest = connect(&kms.url, &stack.guest(1)).await;
    let stranger = KmsClient(kms.anonymous());

    let refused = release(&guest).await.unwrap_err();

    assert_eq!((refused.code.as_str(), refused.message.as_str()), ("kms/self-authorization", "KMS self authorization failed"));
    assert!(stranger.get_meta(&Empty {}).await.is_ok());
    let public = AppId { app_id: vec![1; 20], ..AppId::default() };
    assert_eq!(stranger.get_app_env_encrypt_pub_key(&public).await.unwrap().public_key.len(), 32, "what is public stays so");
    stack.allow_kms(&[&Guest::new(1)], &machine.mr_aggregated);
    assert_eq!(release(&guest).await.unwrap(), 32, "a no is not remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_is_taken_off_the_list_stops_without_a_restart() {
    let stack = Stack::start().await;
    let machine = stack.machine("one").await;
    stack.allow_kms(&[&Guest::new(1)], &machine.mr_aggregated);
    let kms = stack.kms_with(stack.settings_on(&machine)).await;
    let guest = connect(&kms.url, &stack.guest(1)).await;
    assert_eq!(release(&guest).await.unwrap(), 32);

    stack.allow_kms(&[&Guest::new(1)], &"11".repeat(32));
    let started = Instant::now();
    let refused = loop {
        match release(&guest).await {
            Err(error) => break error,
            Ok(_) => assert!(started.elapsed() < PATIENCE, "it still releases keys"),
        }
    };

    assert_eq!(refused.code, "kms/self-authorization");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_is_taken_away_only_under_danger() {
    let stack = Stack::start().await;
    let machine = stack.machine("one").await;
    let mut settings = stack.settings_on(&machine);
    settings.danger.skip_self_authorization = true;
    let kms = stack.kms_with(settings).await;

    assert_eq!(release(&connect(&kms.url, &stack.guest(1)).await).await.unwrap(), 32);
}
