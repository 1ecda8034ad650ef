//! The collateral client against the software TEE's service: cached, fetched once for many, and honest about failures.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use axum::{extract::Request, middleware::Next};
use dstack_attestation::PckIssuer;
use dstack_ra_tls::collateral::{CollateralClient, FetchError, Platform, Tee};
use dstack_rpc::{Client, Endpoint, Listener};
use dstack_tee_simulator::{Config, Daemon};

fn platform(issuer: PckIssuer) -> Platform {
    Platform::known(Tee::Tdx, [0xd5, 0x7a, 0xc0, 0, 0, 0], issuer)
}

/// A collateral service that counts requests before it passes them on.
struct Service {
    address: String,
    requests: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

impl Service {
    async fn must_start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: directory.path().join("tee"),
            control_socket: directory.path().join("control.sock"),
            collateral_listen: "127.0.0.1:0".parse().unwrap(),
            kernel_vsock: false,
            pid_file: "".into(),
        };
        let daemon = Daemon::open(&config).await.unwrap();
        let inner = Client::new(Endpoint::parse(&format!("http://{}", daemon.addresses().collateral)).unwrap());
        tokio::spawn(daemon.serve(std::future::pending()));
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let pass_on = move |request: Request, _: Next| {
            let (inner, counter) = (inner.clone(), counter.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = inner.get(request.uri().path_and_query().unwrap().as_str()).await.unwrap();
                let mut response = axum::response::Response::new(axum::body::Body::from(answer.body));
                *response.status_mut() = answer.status;
                *response.headers_mut() = answer.headers;
                response
            }
        };
        let router = axum::Router::new().fallback(|| async {}).layer(axum::middleware::from_fn(pass_on));
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
        Self { address, requests, _directory: directory }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn many_callers_share_one_fetch_until_it_expires() {
    let service = Service::must_start().await;
    let now = Arc::new(AtomicU64::new(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()));
    let clock = now.clone();
    let client = CollateralClient::new(&service.address).unwrap().with_clock(move || clock.load(Ordering::SeqCst));

    let callers = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.endorsements_for(platform(PckIssuer::Platform)).await.unwrap() })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(service.requests(), 4);

    now.fetch_add(23 * 3600, Ordering::SeqCst);
    client.endorsements_for(platform(PckIssuer::Platform)).await.unwrap();
    assert_eq!(service.requests(), 4);

    now.fetch_add(2 * 3600, Ordering::SeqCst);
    client.endorsements_for(platform(PckIssuer::Platform)).await.unwrap();
    assert_eq!(service.requests(), 8);
}

#[tokio::test]
async fn unknown_platforms_and_dead_services_are_told_apart() {
    let service = Service::must_start().await;
    let client = CollateralClient::new(&format!("{}/sgx/certification/v4/", service.address)).unwrap();

    assert!(matches!(
        client.endorsements_for(Platform::known(Tee::Tdx, [0; 6], PckIssuer::Platform)).await.unwrap_err(),
        FetchError::Refused { status: 404, .. }
    ));
    assert!(matches!(client.endorsements_for(platform(PckIssuer::Processor)).await.unwrap_err(), FetchError::Refused { status: 404, .. }));
    assert!(client.endorsements_for(platform(PckIssuer::Platform)).await.is_ok());
    assert!(matches!(client.endorsements(b"not a quote").await.unwrap_err(), FetchError::Quote(_)));

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = CollateralClient::new(&format!("http://{nobody}")).unwrap();
    assert!(matches!(dead.endorsements_for(platform(PckIssuer::Platform)).await.unwrap_err(), FetchError::Unreachable { .. }));
    assert!(matches!(CollateralClient::new("nothing").unwrap_err(), FetchError::Address { .. }));
}
