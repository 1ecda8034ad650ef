//! What the service bears: too many calls, and what whoever watches can see.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_api::kms::{Empty, GetAppKeyRequest, KmsClient};
use dstack_kms::config::LimitsFile;
use http::StatusCode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testbed::{Guest, Stack, connect, program::Program};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

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

/// More than the listener has places for, each stuck at another point; they are cut off, and nobody waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_finish_keep_no_guest_from_its_keys() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let address = kms.url.strip_prefix("https://").unwrap().strip_suffix("/prpc").unwrap().to_owned();
    let mut stuck = Vec::new();
    for number in 0..300 {
        let mut tcp = TcpStream::connect(&address).await.unwrap();
        match number % 3 {
            // Says nothing at all.
            0 => stuck.push(tcp),
            // A TLS record that claims more than it brings.
            1 => {
                tcp.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
                stuck.push(tcp);
            }
            // Half of a ClientHello's first bytes, and one more now and then.
            _ => {
                tcp.write_all(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).await.unwrap();
                tokio::time::timeout(Duration::from_secs(5), tcp.write_all(&[0])).await.unwrap().unwrap();
                stuck.push(tcp);
            }
        }
    }

    let started = Instant::now();
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };
    let keys = connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();

    assert_eq!(keys.disk_crypt_key.len(), 32);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(stuck.len(), 300);
}

/// The real program, each source with its own hundred, all held open by this side.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_connections_keep_no_guest_from_its_keys() {
    const CONNECTIONS: u32 = 10_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most > u64::from(CONNECTIONS) + 200, "this machine allows a process {most} files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let stack = Stack::start().await;
    let kms = Program::start(&stack);
    let server: SocketAddr = kms.url.trim_start_matches("https://").trim_end_matches("/prpc").parse().unwrap();
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };

    let mut held = Vec::new();
    for index in 0..CONNECTIONS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + index / 100), 0).into()).unwrap();
        held.push(socket.connect(server).await.unwrap());
        if index % 1000 == 999 {
            let started = Instant::now();
            let keys = connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();
            assert_eq!(keys.disk_crypt_key.len(), 32);
            assert!(started.elapsed() < Duration::from_secs(5), "{:?} beside {}", started.elapsed(), held.len());
        }
    }
    assert!(kms.resident_bytes() < 200 << 20, "{} bytes", kms.resident_bytes());
}

/// A body that does not come is not waited for by anyone else, and a body that is too long is not read.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_end_or_are_too_long_harm_only_themselves() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let address = kms.url.strip_prefix("https://").unwrap().strip_suffix("/prpc").unwrap().to_owned();
    let tls = Arc::new(dstack_ra_tls::tls::danger_unverified_client().unwrap());
    let open = async |head: String| {
        let tcp = TcpStream::connect(&address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
        let mut stream = connector.connect("kms.test".try_into().unwrap(), tcp).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let head = |length: usize| format!("POST /prpc/GetAppKey HTTP/1.1\r\nhost: kms\r\ncontent-length: {length}\r\n\r\n");
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(open(head(1000)).await);
        waiting.push(open("POST /prpc/GetMeta HTTP/1.1\r\nhost: k".to_owned()).await);
    }

    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };
    connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();

    let too_long = (10 << 20) + 1;
    let mut oversize = open(head(too_long)).await;
    oversize.write_all(&vec![0; too_long]).await.unwrap();
    let mut answer = vec![0; 12];
    tokio::time::timeout(Duration::from_secs(20), oversize.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
    assert_eq!(waiting.len(), 100);
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
