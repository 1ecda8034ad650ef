//! SignCert: what an app's certificate is, and what it can never be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::{
    RpcError,
    kms::{KmsClient, SignCertRequest, SignCertResponse},
};
use dstack_attestation::Attestation;
use dstack_manifest::ComposeHash;
use dstack_ra_tls::{CertConfig, CertKey, CertRequest, RaTlsCertificate, tls, usage};
use dstack_rpc::{Client, Endpoint, Listener};
use testbed::{Guest, Kms, Stack, der_of, now, os_image_hash};

fn request(guest: &Guest, config: CertConfig) -> SignCertRequest {
    let spki = guest.key.spki_der();
    let csr = CertRequest::new(spki.clone(), config, &guest.attest(&spki));
    let (csr, signature) = csr.sign(&guest.key).unwrap();
    SignCertRequest { api_version: 2, csr, signature, vm_config: guest.vm_config_text() }
}

fn wishes() -> CertConfig {
    CertConfig {
        subject: "app.example".into(),
        subject_alt_names: vec!["app.example".into(), "10.0.0.7".into()],
        usage_server_auth: true,
        usage_client_auth: true,
        ..CertConfig::default()
    }
}

async fn sign(kms: &Kms, request: &SignCertRequest) -> Result<SignCertResponse, RpcError> {
    KmsClient(kms.anonymous()).sign_cert(request).await
}

fn parse(pem: &str) -> RaTlsCertificate {
    RaTlsCertificate::parse(&der_of(pem)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_guest_gets_leaf_app_authority_and_root() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);

    let chain = sign(&kms, &request(&guest, wishes())).await.unwrap().certificate_chain;

    let [leaf, authority, _root] = [&chain[0], &chain[1], &chain[2]].map(|pem| parse(pem));
    assert_eq!(chain.len(), 3);
    assert_eq!((leaf.usage(), leaf.app_id()), (Some(usage::APP_CUSTOM), Some(guest.app_id)));
    assert_eq!((authority.usage(), authority.app_id()), (Some(usage::APP_CA), Some(guest.app_id)));
    assert_eq!(leaf.spki_der(), guest.key.spki_der());
    assert!(leaf.evidence().unwrap().is_none() && leaf.app_info().is_none());
    let limit = i64::try_from(now() + 90 * 86_400).unwrap();
    assert!((limit - 60..=limit).contains(&leaf.not_after()), "shortened to the operator's limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_authority_is_the_same_for_all_instances_and_another_for_other_apps() {
    let stack = Stack::start().await;
    stack.allow(&[&Guest::new(1), &Guest::new(2)]);
    let kms = stack.kms().await;
    let mut keys = Vec::new();
    for number in [1, 1, 2] {
        let chain = sign(&kms, &request(&stack.guest(number), wishes())).await.unwrap().certificate_chain;
        keys.push(parse(&chain[1]).spki_der().to_vec());
    }

    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], keys[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_and_facts_are_added_on_request_and_are_the_verified_ones() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    let config = CertConfig { ext_quote: true, ext_app_info: true, ..wishes() };

    let chain = sign(&kms, &request(&guest, config)).await.unwrap().certificate_chain;

    let leaf = parse(&chain[0]);
    let info = leaf.app_info().unwrap();
    assert_eq!(info.os_image_hash, os_image_hash().as_bytes());
    assert_eq!(info.compose_hash, guest.compose_hash.as_bytes());
    assert_ne!(info.device_id.as_slice(), sha2_of_nothing());
    assert!(leaf.evidence().unwrap().is_some());
}

fn sha2_of_nothing() -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(b"").into()
}

/// The chain is valid under the KMS's root, and still no guest takes its holder for the KMS.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_certificate_never_passes_for_the_kms() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    let chain = sign(&kms, &request(&guest, wishes())).await.unwrap().certificate_chain;
    let root = der_of(&chain[2]);
    let identity =
        tls::Identity { chain: chain.iter().map(|pem| der_of(pem)).collect(), key: CertKey::from_pem(&guest.key.to_pem()).unwrap() };
    let impostor = Listener::tls(([127, 0, 0, 1], 0).into(), tls::anonymous_server(&identity).unwrap()).await.unwrap();
    let url = format!("https://{}/prpc", impostor.local_addr().unwrap());
    tokio::spawn(dstack_rpc::serve(impostor, axum::Router::new(), std::future::pending()));
    let reach = async |wanted: &str| {
        let config = tls::pinned_client(&root, wanted, None).unwrap();
        Client::new(Endpoint::parse(&url).unwrap()).with_tls(config).get("/").await
    };

    assert!(reach(usage::APP_CUSTOM).await.is_ok(), "the chain itself is valid");
    let error = reach(usage::KMS_RPC).await.unwrap_err();
    assert_eq!(dstack_api::UserFacing::code(&error), "rpc/tls");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_kms_are_not_given_away() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    for (config, code) in [
        (CertConfig { subject_alt_names: vec!["kms.test".into()], ..wishes() }, "kms/certificate-name"),
        (CertConfig { subject_alt_names: vec!["*.test".into()], ..wishes() }, "kms/certificate-name"),
        (CertConfig { subject: "Dstack KMS CA".into(), ..wishes() }, "kms/certificate-subject"),
        (CertConfig { not_before: Some(5), not_after: Some(5), ..wishes() }, "kms/certificate-validity"),
    ] {
        let error = sign(&kms, &request(&guest, config)).await.unwrap_err();

        assert_eq!(error.code, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_hold_are_refused() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let guest = stack.guest(1);
    let good = request(&guest, wishes());

    let mut changed = good.clone();
    changed.csr[40] ^= 1;
    assert_eq!(sign(&kms, &changed).await.unwrap_err().code, "kms/certificate-request");

    let other = CertKey::generate().unwrap();
    let foreign = CertRequest::new(other.spki_der(), wishes(), &guest.attest(&guest.key.spki_der()));
    let (csr, signature) = foreign.sign(&other).unwrap();
    let error = sign(&kms, &SignCertRequest { csr, signature, ..good.clone() }).await.unwrap_err();
    assert_eq!(error.code, "kms/evidence-refused", "evidence of another key");

    for api_version in [0, 3] {
        let error = sign(&kms, &SignCertRequest { api_version, ..good.clone() }).await.unwrap_err();
        assert_eq!(error.message, format!("Unsupported API version: {api_version}"));
    }

    let mut unknown = stack.guest(1);
    unknown.compose_hash = ComposeHash::new([9; 32]);
    assert_eq!(sign(&kms, &request(&unknown, wishes())).await.unwrap_err().code, "kms/compose-hash-not-allowed");

    let mut damaged = stack.guest(1);
    damaged.tamper_envelope = |attestation: &mut Attestation| attestation.quote.truncate(100);
    assert!(sign(&kms, &request(&damaged, wishes())).await.is_err());
}
