//! Evidence of now: nonces of the KMS, what a policy can ask of them, and clocks that are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::{
    RpcError,
    kms::{AppKeyResponse, Empty, GetAppKeyRequest, KmsClient, SignCertRequest},
};
use dstack_ra_tls::{CertConfig, CertKey, CertRequest, CertificateAuthority, Validity, tls, usage};
use dstack_release_log::{Entry, ReleaseProof};
use dstack_rpc::{Client, Endpoint};
use testbed::{Kms, Stack, anonymous, connect, connect_with_nonce, der_of, now, os_image_hash};

const TEN_YEARS: u64 = 3650 * 24 * 3600;

async fn ask(client: &KmsClient<Client>, api_version: u32) -> Result<AppKeyResponse, RpcError> {
    client.get_app_key(&GetAppKeyRequest { api_version, ..Default::default() }).await
}

/// A list that allows guest 1 with evidence of at most this age.
fn want_fresh(stack: &Stack, seconds: u64) {
    let guest = stack.guest(1);
    stack.write_allow_list(&format!(
        "version = 1\nmax_evidence_age_seconds = {seconds}\n[danger]\nallow_simulated = true\n[[os_images]]\nhash = \"{}\"\n\
         [[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
        os_image_hash(),
        guest.app_id,
        guest.compose_hash
    ));
}

async fn kms_that_wants_fresh_evidence() -> (Stack, Kms) {
    let stack = Stack::start().await;
    want_fresh(&stack, 120);
    let kms = stack.kms().await;
    (stack, kms)
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_over_the_offered_nonce_is_fresh_and_logged_with_its_age() {
    let (stack, kms) = kms_that_wants_fresh_evidence().await;
    let client = connect_with_nonce(&kms.url, &stack.guest(1), |nonce| (Some(nonce.clone()), Some(nonce))).await;

    let keys = ask(&client, 2).await.unwrap();

    let entry = Entry::parse(&ReleaseProof::parse(&keys.release_proof).unwrap().entry).unwrap();
    assert!(entry.evidence_age_seconds.is_some_and(|seconds| seconds < 60), "{entry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_are_accepted_as_the_policy_says() {
    let (stack, kms) = kms_that_wants_fresh_evidence().await;
    let client = connect(&kms.url, &stack.guest(1)).await;
    for version in [0, 1] {
        assert_eq!(ask(&client, version).await.unwrap_err().code, "kms/evidence-not-fresh");
    }

    stack.allow(&[&testbed::Guest::new(1)]);

    for version in [0, 1] {
        let keys = ask(&client, version).await.unwrap();
        let entry = Entry::parse(&ReleaseProof::parse(&keys.release_proof).unwrap().entry).unwrap();
        assert_eq!(entry.evidence_age_seconds, None);
    }
    assert_eq!(ask(&client, 3).await.unwrap_err().message, "Unsupported API version: 3");
}

/// Each way to claim freshness that the evidence does not prove.
#[tokio::test(flavor = "multi_thread")]
async fn freshness_that_is_not_proven_is_refused() {
    let (stack, kms) = kms_that_wants_fresh_evidence().await;
    let guest = stack.guest(1);

    let without = connect(&kms.url, &guest).await;
    assert_eq!(ask(&without, 2).await.unwrap_err().code, "kms/nonce");

    let made_up = connect_with_nonce(&kms.url, &guest, |_| (Some(vec![7; 32]), Some(vec![7; 32]))).await;
    assert_eq!(ask(&made_up, 2).await.unwrap_err().code, "kms/nonce");

    let shown_only = connect_with_nonce(&kms.url, &guest, |nonce| (Some(nonce), None)).await;
    assert_eq!(ask(&shown_only, 2).await.unwrap_err().code, "kms/evidence-refused");

    let bound_only = connect_with_nonce(&kms.url, &guest, |nonce| (None, Some(nonce))).await;
    assert_eq!(ask(&bound_only, 1).await.unwrap_err().code, "kms/evidence-refused");

    let (other_stack, other) = kms_that_wants_fresh_evidence().await;
    let foreign = KmsClient(anonymous(&other.url)).get_temp_ca_cert(&Empty {}).await.unwrap().nonce;
    let of_another = connect_with_nonce(&kms.url, &guest, |_| (Some(foreign.clone()), Some(foreign))).await;
    assert_eq!(ask(&of_another, 2).await.unwrap_err().code, "kms/nonce");
    drop(other_stack);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_need_no_nonce() {
    let (stack, kms) = kms_that_wants_fresh_evidence().await;
    let guest = stack.guest(1);
    let spki = guest.key.spki_der();
    let config = CertConfig { subject: "app.example".into(), usage_client_auth: true, ..CertConfig::default() };
    let (csr, signature) = CertRequest::new(spki.clone(), config, &guest.attest(&spki)).sign(&guest.key).unwrap();

    let request = SignCertRequest { api_version: 2, csr, signature, vm_config: guest.vm_config_text() };

    let answer = KmsClient(kms.anonymous()).sign_cert(&request).await.unwrap();

    assert_eq!(answer.certificate_chain.len(), 3);
}

/// A client whose clock is ten years off makes certificates that are not valid now; one that says "from long ago" is none of these.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_ten_years_off_gets_nothing() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    let answer = KmsClient(kms.anonymous()).get_temp_ca_cert(&Empty {}).await.unwrap();
    let authority = CertificateAuthority::load(&answer.temp_ca_cert, CertKey::from_pem(&answer.temp_ca_key).unwrap()).unwrap();
    let ask_at = async |validity: Validity| {
        let identity = guest.identity_with(&authority, None, None, validity);
        let config = tls::pinned_client(&der_of(&answer.ca_cert), usage::KMS_RPC, Some(&identity)).unwrap();
        ask(&KmsClient(Client::new(Endpoint::parse(&kms.url).unwrap()).with_tls(config)), 1).await
    };

    let behind = Validity { not_before: now() - TEN_YEARS, not_after: now() - TEN_YEARS + 3600 };
    let ahead = Validity { not_before: now() + TEN_YEARS - 7200, not_after: now() + TEN_YEARS - 3600 };
    assert!(ask_at(behind).await.is_err());
    assert!(ask_at(ahead).await.is_err());
    assert!(ask_at(Validity { not_before: 157_766_400, not_after: now() + 3600 }).await.is_ok(), "as guests do");
}
