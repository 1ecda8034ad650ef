//! TLS: the client's certificates reach the handler, strangers do not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod echo;

use std::{sync::Arc, time::Duration};

use dstack_api::host_api::HostApiClient;
use dstack_rpc::{Client, GetPolicy, Limits, Listener};
use echo::{Host, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn must_ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn must_leaf(ca: &Ca) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

fn must_roots(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    Arc::new(roots)
}

async fn must_serve_tls(server_ca: &Ca, client_ca: &Ca) -> Server {
    must_serve_tls_limited(server_ca, client_ca, Limits::default()).await
}

async fn must_serve_tls_limited(server_ca: &Ca, client_ca: &Ca, limits: Limits) -> Server {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(must_roots(client_ca), Arc::clone(&provider)).allow_unauthenticated().build().unwrap();
    let (certificate, key) = must_leaf(server_ca);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
    let endpoint = format!("https://{}/api", listener.local_addr().unwrap());
    Server::start(listener, &endpoint, Host::default(), GetPolicy::Refuse, limits)
}

fn client_config(trusted: &Ca) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(must_roots(trusted))
}

async fn chain_length(client: Client) -> Result<String, dstack_api::RpcError> {
    HostApiClient(client).info(&Default::default()).await.map(|info| info.version)
}

#[tokio::test]
async fn client_chain_reaches_the_handler() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let server = must_serve_tls(&server_ca, &client_ca).await;
    let (certificate, key) = must_leaf(&client_ca);
    let with_certificate = client_config(&server_ca).with_client_auth_cert(vec![certificate, client_ca.der().clone()], key).unwrap();
    let without = client_config(&server_ca).with_no_client_auth();

    assert_eq!(chain_length(server.client().with_tls(with_certificate)).await.unwrap(), "2");
    assert_eq!(chain_length(server.client().with_tls(without)).await.unwrap(), "0");
}

#[tokio::test]
async fn foreign_client_certificate_is_refused() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let server = must_serve_tls(&server_ca, &client_ca).await;
    let (certificate, key) = must_leaf(&must_ca());
    let config = client_config(&server_ca).with_client_auth_cert(vec![certificate], key).unwrap();

    assert!(chain_length(server.client().with_tls(config)).await.is_err());
}

#[tokio::test]
async fn foreign_server_is_refused() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let server = must_serve_tls(&server_ca, &client_ca).await;

    let error = chain_length(server.client().with_tls(client_config(&must_ca()).with_no_client_auth())).await.unwrap_err();

    assert_eq!(error.code, "rpc/tls");
}

#[tokio::test]
async fn https_without_trust_is_refused() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let server = must_serve_tls(&server_ca, &client_ca).await;

    let error = chain_length(server.client()).await.unwrap_err();

    assert!(error.message.ends_with("https needs a TLS configuration"), "{}", error.message);
}

/// A connection from another address of this machine.
async fn stranger(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(server.address()).await.unwrap()
}

#[tokio::test]
async fn thousands_of_unfinished_handshakes_keep_nobody_out() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let limits = Limits { handshakes: 16, connections: 4, handshake_timeout: Duration::from_secs(600), ..Limits::default() };
    let server = must_serve_tls_limited(&server_ca, &client_ca, limits).await;
    let mut held = Vec::new();
    for index in 0..2000 {
        held.push(stranger(&server).await);
        if index % 200 == 199 {
            let client = server.client().with_tls(client_config(&server_ca).with_no_client_auth());
            assert_eq!(chain_length(client).await.unwrap(), "0", "after {index} unfinished handshakes");
        }
        if held.len() == 500 {
            // The server closes the older ones, long before the deadline of a handshake.
            for mut stream in held.drain(..).take(400) {
                let end = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0])).await;
                assert!(end.is_ok(), "an old handshake is held");
            }
        }
    }
}

#[tokio::test]
async fn one_source_has_its_share_of_connections() {
    let (server_ca, client_ca) = (must_ca(), must_ca());
    let limits = Limits { connections_per_source: 2, ..Limits::default() };
    let server = must_serve_tls_limited(&server_ca, &client_ca, limits).await;
    let client = || server.client().with_tls(client_config(&server_ca).with_no_client_auth());
    let held = [client(), client()];
    for client in &held {
        chain_length(client.clone()).await.unwrap();
    }

    assert!(chain_length(client()).await.is_err());

    drop(held);
    let mut answer = chain_length(client()).await;
    // The server learns of the end of a connection a moment later.
    for _ in 0..1000 {
        if answer.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
        answer = chain_length(client()).await;
    }
    assert!(answer.is_ok());
}
