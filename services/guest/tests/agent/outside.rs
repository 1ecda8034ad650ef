//! Strangers and the host.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
};

use axum::http::StatusCode;
use dstack_attestation::{Evidence, UnverifiedQuote};
use dstack_event_log::EventLog;
use dstack_guest::boot::control::{self, Order};
use serde_json::Value;

use crate::fixture::{APP_ID, Guest, Setup, replay_digests};

const EVIDENCE: &str = "/.well-known/dstack/evidence";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_over_a_nonce_binds_nonce_and_application() {
    let guest = Guest::must_start().await;

    let (status, headers, body) = guest.get(&format!("{EVIDENCE}?nonce=0102ff")).await;

    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(headers["x-app-version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(headers["content-type"], "application/json");
    let evidence = Evidence::parse_json(&body).unwrap();
    let quote = UnverifiedQuote::parse(&evidence.quote).unwrap();
    assert_eq!(hex::encode(quote.fields().report_data), format!("0102ff{}", "00".repeat(61)));
    let json: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(replay_digests(json["event_log"].as_str().unwrap()), quote.fields().rtmr);
    let compose = evidence.app_compose.unwrap();
    assert_eq!(compose, guest.compose.raw());
    let measured = EventLog::new(evidence.event_log).unwrap().boot_payload("compose-hash").unwrap();
    assert_eq!(measured, dstack_manifest::ComposeHash::of(&compose).as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_must_be_hex_of_1_to_32_bytes() {
    let guest = Guest::must_start().await;
    let before = *guest.td.quotes.lock().unwrap();

    for nonce in ["", "0", "zz", &"00".repeat(33)] {
        let (status, answer) = guest.get_json(&format!("{EVIDENCE}?nonce={nonce}")).await;
        assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &Value::from("agent/bad-nonce")), "{nonce}");
    }
    assert_eq!(guest.get_json(EVIDENCE).await.0, StatusCode::BAD_REQUEST);

    assert_eq!(*guest.td.quotes.lock().unwrap(), before, "no quote was spent");
    assert_eq!(guest.get_json(&format!("{EVIDENCE}?nonce={}", "ab".repeat(32))).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_learn_identity_and_version() {
    let guest = Guest::must_start().await;

    for path in ["/prpc/Worker.Info", "/prpc/Info"] {
        let (status, info) = guest.get_json(path).await;
        assert_eq!((status, &info["app_id"]), (StatusCode::OK, &Value::from(APP_ID)));
        assert!(info["tcb_info"].as_str().unwrap().contains("rtmr3"));
    }
    let (_, headers, body) = guest.get("/prpc/Worker.Version").await;
    assert_eq!(headers["x-app-version"], env!("CARGO_PKG_VERSION"));
    assert!(body.contains(env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_reach_nothing_that_containers_do() {
    let guest = Guest::must_start().await;

    for path in [
        "/GetKey",
        "/prpc/GetKey",
        "/prpc/DstackGuest.GetKey",
        "/prpc/GetQuote",
        "/api/Shutdown",
        "/prpc/EmitEvent",
        "/prpc/GetAttestationForAppKey",
    ] {
        let (status, _, body) = guest.get(path).await;
        assert!(status.is_client_error(), "{path}");
        assert!(!body.contains("signature_chain"), "{path}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_may_keep_its_configuration_to_itself() {
    let mut setup = Setup::default();
    setup.document.public_tcbinfo = false;
    let guest = Guest::start(setup).await.unwrap();

    let (_, info) = guest.get_json("/prpc/Info").await;
    assert_eq!((&info["tcb_info"], &info["vm_config"]), (&Value::from(""), &Value::from("")));
    assert_eq!(info["app_id"], APP_ID);
    let (status, refused) = guest.get_json(&format!("{EVIDENCE}?nonce=00")).await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &Value::from("agent/evidence-private")));
    let (_, _, page) = guest.get("/").await;
    assert!(!page.contains("RTMR3") && !page.contains("docker_compose_file") && page.contains(APP_ID));
    // Its own containers still see all of it.
    assert!(guest.must_call("Info", Value::Null).await["tcb_info"].as_str().unwrap().contains("rtmr3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_the_application_allows_and_escapes_it() {
    let mut setup = Setup::default();
    setup.document.public_sysinfo = true;
    let guest = Guest::start(setup).await.unwrap();

    let (status, headers, page) = guest.get("/").await;

    assert_eq!(status, StatusCode::OK);
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert_eq!(headers["x-app-version"], env!("CARGO_PKG_VERSION"));
    assert!(page.contains("hello &lt;b&gt;") && !page.contains("hello <b>"));
    for shown in [APP_ID, &guest.compose.compose_hash().to_string(), "RTMR3", "Software TEE", "Kernel"] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!Guest::must_start().await.get("/").await.2.contains("Kernel"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_sees_system_and_network() {
    let guest = Guest::must_start().await;

    let (_, info) = guest.host("Info").await;
    assert_eq!((&info["app_id"], &info["version"]), (&Value::from(APP_ID), &Value::from(env!("CARGO_PKG_VERSION"))));
    let (status, system) = guest.host("GuestApi.SysInfo").await;
    assert_eq!(status, StatusCode::OK);
    assert!(system["total_memory"].as_u64().unwrap() > 0 && system["num_cpus"].as_u64().unwrap() > 0);
    let (status, network) = guest.host("NetworkInfo").await;
    assert_eq!(status, StatusCode::OK);
    assert!(network["interfaces"].is_array());
    let (status, _) = guest.host("GetKey").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_come_from_the_engine_or_the_error_says_why() {
    let guest = Guest::must_start().await;
    let (status, refused) = guest.host("ListContainers").await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &Value::from("agent/container-engine")));

    let engine = UnixListener::bind(guest.config().docker_socket).unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = engine.accept().unwrap();
        let mut request = [0; 512];
        let got = stream.read(&mut request).unwrap();
        let body = r#"[{"Id":"ab","Names":["/hello"],"Image":"hello","ImageID":"sha256:1","Created":5,"State":"running","Status":"Up"}]"#;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        String::from_utf8_lossy(&request[..got]).into_owned()
    });
    let (_, found) = guest.host("ListContainers").await;

    assert!(served.join().unwrap().starts_with("GET /containers/json?all=1 "));
    assert_eq!((&found["containers"][0]["names"][0], &found["containers"][0]["state"]), (&Value::from("/hello"), &Value::from("running")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_goes_to_init_and_fails_where_nobody_takes_it() {
    let guest = Guest::must_start().await;
    assert_eq!(guest.host("Shutdown").await.0, StatusCode::BAD_REQUEST);

    let mut orders = control::listen(&guest.config().control_socket).unwrap();
    let (status, answer) = guest.host("Shutdown").await;

    assert_eq!((status, answer), (StatusCode::OK, Value::Null));
    let progress = Order::Notify { event: "shutdown.progress".to_owned(), payload: "powering off".to_owned() };
    assert_eq!(orders.recv().await.unwrap(), progress);
    assert_eq!(orders.recv().await.unwrap(), Order::PowerOff);
}
