//! The forms of the calls that need no evidence, as existing clients send them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::kms::{AppId as AppIdMessage, Empty, GetTempCaCertResponse, KmsClient, PublicKeyResponse};
use dstack_key_hierarchy::{EnvSecret, EnvVar, Secret, open_env, seal_env, verify_env_key, verify_env_key_v1};
use dstack_ra_tls::RaTlsCertificate;
use dstack_rpc::Answer;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use prost::Message as _;
use testbed::{Kms, Stack, der_of, now};

async fn post(kms: &Kms, path: &str, content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    kms.anonymous().request(Method::POST, path, headers, body.into()).await.unwrap()
}

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_path_forms_and_both_encodings_answer() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;

    let one = post(&kms, "/prpc/GetMeta?json", "text/plain", "").await;
    let two = post(&kms, "/prpc/KMS.GetMeta", "application/json", "{}").await;
    let three = kms.anonymous().get("/prpc/KMS.GetMeta").await.unwrap();
    assert_eq!((json(&one), json(&one)), (json(&two), json(&three)));
    assert_eq!(one.headers.get("x-app-version").unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(json(&one)["is_dev"], true);
    assert_eq!(json(&one)["k256_pubkey"].as_str().unwrap().len(), 66);
    assert_eq!(json(&one)["bootstrap_info"]["attestation"], "");

    let binary = post(&kms, "/prpc/GetTempCaCert", "application/octet-stream", "").await;
    let decoded = GetTempCaCertResponse::decode(binary.body.as_slice()).unwrap();
    let other = KmsClient(kms.anonymous()).get_temp_ca_cert(&Empty {}).await.unwrap();
    assert_ne!(decoded.nonce, other.nonce, "fresh each time");
    assert_eq!(GetTempCaCertResponse { nonce: Vec::new(), ..decoded }, GetTempCaCertResponse { nonce: Vec::new(), ..other });
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_without_a_certificate() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    for path in ["/health", "/healthz"] {
        let answer = kms.anonymous().get(path).await.unwrap();

        assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::OK, b"OK".as_slice()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_carries_what_pins_the_kms() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let meta = KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap();
    let info = meta.bootstrap_info.unwrap();

    assert_eq!(RaTlsCertificate::parse(&der_of(&meta.ca_cert)).unwrap().spki_der(), info.ca_pubkey);
    assert_eq!(meta.k256_pubkey, info.k256_pubkey);
    assert!(!meta.allow_any_upgrade);
}

/// What the owner's tool does: fetch the key, check both signatures, seal; the app opens with its released key.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_to_the_published_key_opens_with_the_released_key() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    let anonymous = KmsClient(kms.anonymous());
    let root = anonymous.get_meta(&Empty {}).await.unwrap().k256_pubkey.try_into().unwrap();
    let request = AppIdMessage { app_id: guest.app_id.as_bytes().to_vec(), ..AppIdMessage::default() };

    let PublicKeyResponse { public_key, signature, timestamp, signature_v1, epoch: _ } =
        anonymous.get_app_env_encrypt_pub_key(&request).await.unwrap();

    let public_key: [u8; 32] = public_key.try_into().unwrap();
    verify_env_key(&guest.app_id, &public_key, &signature, &root).unwrap();
    verify_env_key_v1(&guest.app_id, (&public_key, timestamp), &signature_v1, &root, now()).unwrap();
    let sealed = seal_env(&public_key, &[EnvVar::new("TOKEN", "hunter2")], &mut rand_core::OsRng).unwrap();
    let keys = kms.connect(&guest).await.get_app_key(&dstack_api::kms::GetAppKeyRequest::default()).await.unwrap();
    let secret = EnvSecret::new(Secret::from_slice(&keys.env_crypt_key).unwrap());
    assert_eq!(open_env(&secret, &sealed, &["TOKEN".to_owned()]).unwrap().vars, [EnvVar::new("TOKEN", "hunter2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_id_has_twenty_bytes() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    for length in [0, 19, 21, 32] {
        let request = AppIdMessage { app_id: vec![1; length], ..AppIdMessage::default() };

        let error = KmsClient(kms.anonymous()).get_app_env_encrypt_pub_key(&request).await.unwrap_err();

        assert_eq!(error.message, "app_id must be 20 bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_served_here_say_where_they_are() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    for (method, code) in [
        ("GetKmsKey", "kms/no-client-certificate"),
        ("KMS.GetKmsKey", "kms/no-client-certificate"),
        ("Admin.ClearImageCache", "kms/admin-elsewhere"),
        ("ClearImageCache", "kms/admin-elsewhere"),
        ("Onboard.Bootstrap", "kms/onboarding-over"),
        ("Bootstrap", "kms/keys-exist"),
        ("Onboard", "kms/keys-exist"),
        ("Onboard.GetAttestationInfo", "kms/onboarding-over"),
        ("Finish", "kms/onboarding-over"),
    ] {
        let answer = post(&kms, &format!("/prpc/{method}?json"), "application/json", "{}").await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{method}");
        assert_eq!(json(&answer)["code"], code, "{method}");
        assert!(!json(&answer)["fix"].as_str().unwrap().is_empty(), "{method}");
    }
    assert_eq!(json(&post(&kms, "/prpc/Nonsense?json", "application/json", "{}").await)["code"], "rpc/unknown-method");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_and_oversize_bodies_are_refused_and_the_service_goes_on() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;

    for body in ["{", "\"x\"", r#"{"app_id":"zz"}"#, r#"{"app_id":null}"#] {
        let answer = post(&kms, "/prpc/GetAppEnvEncryptPubKey?json", "application/json", body).await;
        assert_eq!(json(&answer)["code"], "rpc/bad-request", "{body}");
    }
    // The server may answer and close before all of it is sent; either way nothing is accepted.
    let headers = HeaderMap::new();
    let oversize = kms.anonymous().request(Method::POST, "/prpc/SignCert", headers, vec![0; dstack_rpc::BODY_LIMIT + 1]).await;
    assert!(oversize.is_err() || oversize.is_ok_and(|answer| answer.status == StatusCode::PAYLOAD_TOO_LARGE));
    assert!(KmsClient(kms.anonymous()).get_meta(&Empty {}).await.is_ok());
}

/// Keys are not handed out to a link on a page.
#[tokio::test(flavor = "multi_thread")]
async fn get_is_for_reading_only() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    for method in ["GetAppKey", "SignCert", "GetKmsKey"] {
        let answer = kms.anonymous().get(&format!("/prpc/{method}")).await.unwrap();

        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
}
