//! GetAppKey over real TLS with genuine simulated quotes: who gets keys, and who does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::{
    RpcError,
    kms::{AppKeyResponse, Empty, GetAppKeyRequest, KmsClient},
};
use dstack_key_hierarchy::{K256Key, Secret, verify_app_key};
use dstack_manifest::{ComposeHash, InstanceId, OsImageHash};
use testbed::{Guest, Kms, Stack, der_of, os_image_hash};

async fn get_app_key(kms: &Kms, guest: &Guest) -> Result<AppKeyResponse, RpcError> {
    let client = kms.connect(guest).await;
    let request = GetAppKeyRequest { api_version: 1, vm_config: guest.vm_config_text(), ..GetAppKeyRequest::default() };
    // The place in the log is another each time; tests/release_log.rs looks at it.
    client.get_app_key(&request).await.map(|keys| AppKeyResponse { release_proof: String::new(), ..keys })
}

async fn refused(kms: &Kms, guest: &Guest) -> RpcError {
    match get_app_key(kms, guest).await {
        Ok(_) => panic!("keys were released"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_guest_gets_its_keys() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);

    let keys = get_app_key(&kms, &guest).await.unwrap();

    let meta = KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap();
    assert_eq!(keys.ca_cert, meta.ca_cert);
    assert_eq!((keys.disk_crypt_key.len(), keys.env_crypt_key.len()), (32, 32));
    assert_eq!(keys.os_image_hash, os_image_hash().as_bytes());
    let public_key = K256Key::from_scalar(&Secret::from_slice(&keys.k256_key).unwrap()).unwrap().public_key();
    assert!(verify_app_key(&guest.app_id, &public_key, &keys.k256_signature, &meta.k256_pubkey.try_into().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_inside_the_certificate_suffices() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let client = kms.connect(&stack.guest(1)).await;

    assert!(client.get_app_key(&GetAppKeyRequest::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_disk_key_differs_between_instances() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let first = get_app_key(&kms, &stack.guest(1)).await.unwrap();
    let mut other = stack.guest(1);
    other.instance_id = InstanceId::derive(&[9; 20], &other.app_id);

    let second = get_app_key(&kms, &other).await.unwrap();

    assert_ne!(first.disk_crypt_key, second.disk_crypt_key);
    assert_eq!(AppKeyResponse { disk_crypt_key: Vec::new(), ..first }, AppKeyResponse { disk_crypt_key: Vec::new(), ..second });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kms_releases_the_same_keys() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let before = get_app_key(&kms, &stack.guest(1)).await.unwrap();
    kms.stop().await;

    let kms = stack.kms().await;

    assert_eq!(get_app_key(&kms, &stack.guest(1)).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_allow_is_denied_with_its_reason() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;

    let error = refused(&kms, &stack.guest(2)).await;
    assert_eq!(error.code, "kms/app-not-allowed");

    let mut guest = stack.guest(1);
    guest.compose_hash = ComposeHash::new([7; 32]);
    let error = refused(&kms, &guest).await;
    assert_eq!(error.code, "kms/compose-hash-not-allowed");
    assert!(error.message.contains(&guest.compose_hash.to_string()), "{error}");
    assert!(!error.fix.is_empty());

    let mut guest = stack.guest(1);
    guest.boot_done = false;
    assert_eq!(refused(&kms, &guest).await.code, "kms/boot-incomplete");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_followed_while_the_service_runs() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let client = kms.connect(&stack.guest(2)).await;
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    assert_eq!(client.get_app_key(&request).await.unwrap_err().code, "kms/app-not-allowed");

    stack.allow(&[&Guest::new(1), &Guest::new(2)]);
    assert!(client.get_app_key(&request).await.is_ok());

    stack.write_allow_list("version = 99\n");
    assert!(client.get_app_key(&request).await.is_ok(), "the last good list stays in force");

    stack.allow(&[&Guest::new(1)]);
    assert_eq!(client.get_app_key(&request).await.unwrap_err().code, "kms/app-not-allowed", "verified once, asked each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_on_the_list_is_denied() {
    let stack = Stack::start().await;
    let guest = stack.guest(1);
    stack.write_allow_list(&format!(
        "version = 1\n[danger]\nallow_simulated = true\n[[os_images]]\nhash = \"{}\"\n[[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
        OsImageHash::new([1; 32]),
        guest.app_id,
        guest.compose_hash
    ));
    let kms = stack.kms().await;

    assert_eq!(refused(&kms, &guest).await.code, "kms/os-image-not-allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_evidence_needs_the_policys_word_as_well() {
    let stack = Stack::start().await;
    stack.write_allow_list("version = 1\n");
    let kms = stack.kms().await;

    assert_eq!(refused(&kms, &stack.guest(1)).await.code, "kms/simulated-not-allowed");
}

/// Each deviation makes the evidence unbelievable; the guest learns that, not why.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_does_not_hold_is_refused_without_telling_why() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    type Deviation = fn(&mut Guest);
    let deviations: [(&str, Deviation); 11] = [
        ("another key in the report data", |g| g.tamper_body = |b| b.report_data[0] ^= 1),
        ("debug bit", |g| g.tamper_body = |b| b.td_attributes[0] |= 1),
        ("SEPT_VE_DISABLE cleared", |g| g.tamper_body = |b| b.td_attributes[3] = 0),
        ("MRTD of another firmware", |g| g.tamper_body = |b| b.mrtd[0] ^= 1),
        ("RTMR0 of another machine", |g| g.tamper_body = |b| b.rtmr[0][0] ^= 1),
        ("RTMR1 of another kernel", |g| g.tamper_body = |b| b.rtmr[1][0] ^= 1),
        ("RTMR2 of another command line", |g| g.tamper_body = |b| b.rtmr[2][0] ^= 1),
        ("RTMR3 of another log", |g| g.tamper_body = |b| b.rtmr[3][0] ^= 1),
        ("MRCONFIGID of another document", |g| g.tamper_body = |b| b.mr_config_id[1] ^= 1),
        ("changed quote", |g| g.tamper_envelope = |a| a.quote[200] ^= 1),
        ("an image hash without its document", |g| g.vm_config.os_image_hash = Some(OsImageHash::new([1; 32]))),
    ];
    for (name, deviate) in deviations {
        let mut guest = stack.guest(1);
        deviate(&mut guest);

        let error = refused(&kms, &guest).await;

        assert_eq!(error.code, "kms/evidence-refused", "{name}");
        assert_eq!(error.message, "the evidence is not believed", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_machine_than_configured_is_refused() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let mut guest = stack.guest(1);
    guest.vm_config.cpu_count = 4;

    assert_eq!(refused(&kms, &guest).await.code, "kms/evidence-refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_simulated_root_nothing_simulated_passes() {
    let stack = Stack::start().await;
    let mut settings = stack.settings();
    settings.danger.simulated_root = None;
    let kms = stack.kms_with(settings).await;

    assert_eq!(refused(&kms, &stack.guest(1)).await.code, "kms/evidence-refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_of_another_simulated_vendor_is_refused() {
    let (stack, stranger) = (Stack::start().await, Stack::start().await);
    let kms = stack.kms().await;

    assert_eq!(refused(&kms, &stranger.guest(1)).await.code, "kms/evidence-refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_collateral_nothing_is_released_and_the_guest_may_try_again() {
    let stack = Stack::start().await;
    let mut settings = stack.settings();
    settings.collateral_url = "http://127.0.0.1:1".into();
    let kms = stack.kms_with(settings).await;

    assert_eq!(refused(&kms, &stack.guest(1)).await.code, "kms/collateral-unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_are_no_keys() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;

    let error = KmsClient(kms.anonymous()).get_app_key(&GetAppKeyRequest::default()).await.unwrap_err();

    assert_eq!((error.code.as_str(), error.message.as_str()), ("kms/no-client-certificate", "No attestation provided"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_kms_does_not_even_connect() {
    let stack = Stack::start().await;
    let (kms, other) = (stack.kms().await, Stack::start().await);
    let other = other.kms().await;
    let foreign = KmsClient(other.anonymous()).get_temp_ca_cert(&Empty {}).await.unwrap();
    let authority =
        dstack_ra_tls::CertificateAuthority::load(&foreign.temp_ca_cert, dstack_ra_tls::CertKey::from_pem(&foreign.temp_ca_key).unwrap());
    let identity = stack.guest(1).identity(&authority.unwrap());
    let root = KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap().ca_cert;
    let config = dstack_ra_tls::tls::pinned_client(&der_of(&root), "kms:rpc", Some(&identity)).unwrap();
    let client = KmsClient(dstack_rpc::Client::new(dstack_rpc::Endpoint::parse(&kms.url).unwrap()).with_tls(config));

    assert!(client.get_app_key(&GetAppKeyRequest::default()).await.is_err());
}
