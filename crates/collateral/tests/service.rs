//! Against a service that answers as Intel's does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use axum::{Router, extract::Query, http::StatusCode, response::IntoResponse, routing::get};
use dstack_api::UserFacing as _;
use dstack_attestation::PckIssuer;
use dstack_collateral::{CollateralCache, CollateralSource, FetchError};
use dstack_rpc::{Listener, serve, system_tls};

const FMSPC: [u8; 6] = [0x50, 0x80, 0x6f, 0, 0, 0];
const CHAIN: &str = "-----BEGIN%20CERTIFICATE-----%0AAA%2B%0A-----END%20CERTIFICATE-----%0A";

#[derive(Default)]
struct Service {
    requests: AtomicUsize,
    is_down: AtomicBool,
}

#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default)]
    fmspc: String,
    #[serde(default)]
    ca: String,
}

async fn must_start(service: Arc<Service>, chain_header: &'static str) -> CollateralSource {
    let state = Arc::clone(&service);
    let counted = axum::middleware::from_fn(move |request, next: axum::middleware::Next| {
        let service = Arc::clone(&state);
        async move {
            service.requests.fetch_add(1, Ordering::SeqCst);
            if service.is_down.load(Ordering::SeqCst) { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { next.run(request).await }
        }
    });
    let tcb = move |Query(asked): Query<Asked>| async move {
        if asked.fmspc == "50806F000000" {
            ([(chain_header, CHAIN)], r#"{"tcbInfo":{"b":1, "a" : 2},"signature":"0aFF"}"#).into_response()
        } else {
            StatusCode::NOT_FOUND.into_response()
        }
    };
    let crl = |Query(asked): Query<Asked>| async move {
        let body = if asked.ca == "platform" { vec![0x30, 0x82, 1, 2] } else { Vec::new() };
        ([("SGX-PCK-CRL-Issuer-Chain", CHAIN)], body)
    };
    let router = Router::new()
        .route("/sgx/certification/v4/pckcrl", get(crl))
        .route("/sgx/certification/v4/rootcacrl", get(|| async { "308201" }))
        .route("/tdx/certification/v4/tcb", get(tcb))
        .route(
            "/tdx/certification/v4/qe/identity",
            get(|| async { ([("SGX-Enclave-Identity-Issuer-Chain", CHAIN)], r#"{"enclaveIdentity":{"id":"TD_QE"},"signature":"01"}"#) }),
        )
        .layer(counted);
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/sgx/certification/v4/", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, router, std::future::pending()));
    CollateralSource::new(&url, &system_tls()).unwrap()
}

#[tokio::test]
async fn signed_text_is_kept_byte_for_byte_and_chains_are_decoded() {
    let source = must_start(Arc::default(), "TCB-Info-Issuer-Chain").await;

    let collateral = source.fetch_platform(FMSPC, PckIssuer::Platform).await.unwrap().collateral;

    assert_eq!(collateral.tcb_info, r#"{"b":1, "a" : 2}"#);
    assert_eq!(collateral.tcb_info_signature, [0x0a, 0xff]);
    assert_eq!(collateral.tcb_info_issuer_chain, "-----BEGIN CERTIFICATE-----\nAA+\n-----END CERTIFICATE-----\n");
    assert_eq!(collateral.pck_crl, [0x30, 0x82, 1, 2]);
    assert_eq!(collateral.root_ca_crl, [0x30, 0x82, 1]);
    assert_eq!(collateral.qe_identity, r#"{"id":"TD_QE"}"#);
}

#[tokio::test]
async fn older_name_of_the_chain_header_is_read() {
    let source = must_start(Arc::default(), "SGX-TCB-Info-Issuer-Chain").await;

    assert!(source.fetch_platform(FMSPC, PckIssuer::Platform).await.is_ok());
}

#[tokio::test]
async fn unknown_platform_is_refused_by_name() {
    let source = must_start(Arc::default(), "TCB-Info-Issuer-Chain").await;

    let error = source.fetch_platform([0; 6], PckIssuer::Platform).await.unwrap_err();

    assert!(matches!(&error, FetchError::Refused { document: "TCB information", status: StatusCode::NOT_FOUND, .. }), "{error}");
    assert_eq!(error.code(), "collateral/unknown-platform");
}

#[tokio::test]
async fn missing_chain_and_empty_list_are_malformed() {
    let no_chain = must_start(Arc::default(), "X-Other").await;
    let source = must_start(Arc::default(), "TCB-Info-Issuer-Chain").await;

    let header = no_chain.fetch_platform(FMSPC, PckIssuer::Platform).await.unwrap_err();

    assert!(matches!(header, FetchError::Malformed { document: "TCB information", .. }), "{header}");
    // The service sends an empty list for this issuer; hex of nothing is nothing, which no verifier accepts.
    assert!(source.fetch_platform(FMSPC, PckIssuer::Processor).await.unwrap().collateral.pck_crl.is_empty());
}

#[tokio::test]
async fn kept_collateral_needs_no_second_fetch_and_survives_an_outage() {
    let service = Arc::<Service>::default();
    let cache = CollateralCache::new(must_start(Arc::clone(&service), "TCB-Info-Issuer-Chain").await);

    let (first, second) = tokio::join!(cache.platform(FMSPC, PckIssuer::Platform), cache.platform(FMSPC, PckIssuer::Platform));
    service.is_down.store(true, Ordering::SeqCst);
    let third = cache.platform(FMSPC, PckIssuer::Platform).await.unwrap();

    assert!(Arc::ptr_eq(&first.unwrap(), &third));
    assert!(Arc::ptr_eq(&second.unwrap(), &third));
    assert_eq!(service.requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn invented_platforms_do_not_grow_the_cache_without_bound() {
    let service = Arc::<Service>::default();
    let cache = CollateralCache::new(must_start(Arc::clone(&service), "TCB-Info-Issuer-Chain").await);
    cache.platform(FMSPC, PckIssuer::Platform).await.unwrap();

    for number in 0..200_u8 {
        assert!(cache.platform([1, 2, 3, 4, 5, number], PckIssuer::Platform).await.is_err());
    }
    let before = service.requests.load(Ordering::SeqCst);
    cache.platform(FMSPC, PckIssuer::Platform).await.unwrap();

    assert_eq!(service.requests.load(Ordering::SeqCst), before, "the real platform was dropped");
}
