//! Both ends of a connection: pinned servers, clients with evidence, and those that are turned away.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{Router, routing::get};
use dstack_ra_tls::{
    CaProfile, CertKey, CertificateAuthority, LeafProfile, Validity,
    tls::{Identity, danger_unverified_client, pinned_client, server},
    usage,
};
use dstack_rpc::{Caller, Client, ClientError, Endpoint, Listener};

fn validity() -> Validity {
    Validity::starting(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(), 3600)
}

fn authority(profile: CaProfile) -> CertificateAuthority {
    CertificateAuthority::self_signed(profile, CertKey::generate().unwrap(), validity()).unwrap()
}

fn identity(issuer: &CertificateAuthority, profile: &LeafProfile) -> Identity {
    let key = CertKey::generate().unwrap();
    let leaf = issuer.issue_leaf(&key.spki_der(), profile, validity()).unwrap();
    Identity { chain: vec![leaf], key }
}

/// Serves the number of certificates a client showed; returns the address.
async fn must_serve(identity: &Identity, clients: &CertificateAuthority) -> String {
    let config = server(identity, clients.certificate_der()).unwrap();
    let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(|caller: Caller| async move { caller.tls_chain.len().to_string() }));
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    format!("https://{address}")
}

async fn ask(address: &str, config: rustls::ClientConfig) -> Result<String, ClientError> {
    let answer = Client::new(Endpoint::parse(address).unwrap()).with_tls(config).get("/").await?;
    Ok(String::from_utf8(answer.body).unwrap())
}

#[tokio::test]
async fn server_is_known_by_authority_and_usage_not_by_name() {
    let (root, other, temp) = (authority(CaProfile::KmsRoot), authority(CaProfile::KmsRoot), authority(CaProfile::ClientTemp));
    let address = must_serve(&identity(&root, &LeafProfile::kms_rpc("kms.example", None)), &temp).await;

    let pinned = |authority: &CertificateAuthority, usage| pinned_client(authority.certificate_der(), usage, None).unwrap();

    assert_eq!(ask(&address, pinned(&root, usage::KMS_RPC)).await.unwrap(), "0");
    assert_eq!(ask(&address, danger_unverified_client().unwrap()).await.unwrap(), "0");
    assert!(matches!(ask(&address, pinned(&other, usage::KMS_RPC)).await, Err(ClientError::Tls(_))));
    assert!(matches!(ask(&address, pinned(&root, "gateway:rpc")).await, Err(ClientError::Tls(_))));
}

#[tokio::test]
async fn application_certificate_under_the_same_root_is_not_the_kms() {
    let (root, temp) = (authority(CaProfile::KmsRoot), authority(CaProfile::ClientTemp));
    let app = root.issue_app_ca(&dstack_manifest::AppId::new([1; 20]), CertKey::generate().unwrap(), validity()).unwrap();
    let profile = LeafProfile { usage: Some(usage::APP_CUSTOM.into()), server_auth: true, ..LeafProfile::kms_rpc("kms.example", None) };
    let mut impostor = identity(&app, &profile);
    impostor.chain.push(app.certificate_der().clone());
    let address = must_serve(&impostor, &temp).await;

    let result = ask(&address, pinned_client(root.certificate_der(), usage::KMS_RPC, None).unwrap()).await;

    assert!(matches!(result, Err(ClientError::Tls(_))));
}

#[tokio::test]
async fn client_certificate_must_be_under_the_servers_client_authority() {
    let (root, temp, other) = (authority(CaProfile::KmsRoot), authority(CaProfile::ClientTemp), authority(CaProfile::ClientTemp));
    let address = must_serve(&identity(&root, &LeafProfile::kms_rpc("kms.example", None)), &temp).await;
    let with = |issuer: &CertificateAuthority| {
        let guest = identity(issuer, &LeafProfile::guest_client(vec![1, 2, 3]));
        pinned_client(root.certificate_der(), usage::KMS_RPC, Some(&guest)).unwrap()
    };

    assert_eq!(ask(&address, with(&temp)).await.unwrap(), "1");
    assert!(ask(&address, with(&other)).await.is_err());
}
