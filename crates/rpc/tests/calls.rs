//! Calls through real sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod echo;

use dstack_api::{Transport as _, host_api::HostApiClient, vmm::StatusRequest};
use dstack_rpc::{Client, Endpoint, GetPolicy};
use echo::{Host, must_raw, must_serve, must_serve_unix};
use http::{HeaderMap, Method};
use prost::Message as _;

const GET: GetPolicy = GetPolicy::ReadOnly(&["Info", "Status"]);

#[tokio::test]
async fn json_call_returns_typed_answer() {
    let server = must_serve(GET).await;

    let info = HostApiClient(server.client()).info(&Default::default()).await.unwrap();

    assert_eq!((info.name.as_str(), info.version.as_str()), ("tcp", "0"));
}

#[tokio::test]
async fn unit_answer_is_null_in_json_and_nothing_in_protobuf() {
    let server = must_serve(GET).await;

    let json = server.client().call("Notify", br#"{"event":"e","unknown":1}"#.to_vec()).await.unwrap();
    let protobuf = server.client().request(Method::POST, "/api/Notify", HeaderMap::new(), Vec::new()).await.unwrap();

    assert_eq!(json, b"null");
    assert_eq!((protobuf.status.as_u16(), protobuf.body.len()), (200, 0));
    assert_eq!(protobuf.headers["content-type"], "application/octet-stream");
    assert_eq!(protobuf.headers["content-length"], "0");
}

#[tokio::test]
async fn protobuf_is_the_default_and_service_prefix_is_accepted() {
    let server = must_serve(GET).await;
    let body = StatusRequest { keyword: "k".into(), page: 7, ..Default::default() }.encode_to_vec();

    let answer = server.client().request(Method::POST, "/api/Echo.Status", HeaderMap::new(), body.clone()).await.unwrap();

    assert_eq!(answer.body, body);
}

#[tokio::test]
async fn get_reads_typed_fields_from_the_query() {
    let server = must_serve(GET).await;

    let answer = server.client().get("/api/Status?keyword=5&page=7&brief=true&ids=a&ids=b").await.unwrap();

    assert_eq!(String::from_utf8(answer.body).unwrap(), r#"{"ids":["a","b"],"brief":true,"keyword":"5","page":7,"page_size":0}"#);
    assert_eq!(answer.headers["content-type"], "application/json");
}

#[tokio::test]
async fn get_of_a_changing_method_is_refused() {
    let server = must_serve(GET).await;

    for path in ["/api/Notify?event=x", "/api/HostApi.Notify?event=x"] {
        let answer = server.client().get(path).await.unwrap();

        assert_eq!(answer.status.as_u16(), 405);
        assert!(String::from_utf8(answer.body).unwrap().contains("rpc/method-not-allowed"));
    }
    assert_eq!(server.notified(), 0);
}

#[tokio::test]
async fn errors_carry_code_and_fix_in_both_encodings() {
    let server = must_serve(GET).await;

    let json = server.client().call("GetSealingKey", b"{}".to_vec()).await.unwrap_err();
    let protobuf = server.client().request(Method::POST, "/api/GetSealingKey", HeaderMap::new(), Vec::new()).await.unwrap();

    assert_eq!((json.code.as_str(), json.message.as_str()), ("rpc/not-implemented", "sealing is not implemented"));
    assert_eq!(protobuf.status.as_u16(), 400);
    assert_eq!(protobuf.body.get(..2).unwrap(), [0x0a, 26]);
}

#[tokio::test]
async fn unknown_method_and_unreadable_body_are_named() {
    let server = must_serve(GET).await;

    let unknown = server.client().call("Nothing", Vec::new()).await.unwrap_err();
    let unreadable = server.client().call("Notify", b"{\"event\":1}".to_vec()).await.unwrap_err();

    assert_eq!((unknown.code.as_str(), unknown.message.as_str()), ("rpc/unknown-method", "Service not found: HostApi.Nothing"));
    assert_eq!(unreadable.code, "rpc/bad-request");
    assert!(unreadable.message.contains("line 1 column 10"), "{}", unreadable.message);
}

#[tokio::test]
async fn a_panicking_handler_costs_one_answer() {
    // A method that may be called with GET runs in the task of its connection.
    for get in [GET, GetPolicy::ReadOnly(&["Notify"])] {
        let server = must_serve(get).await;
        let client = server.client();

        let broken = client.call("Notify", br#"{"event":"panic"}"#.to_vec()).await.unwrap_err();
        let next = client.call("Info", Vec::new()).await;

        assert_eq!(broken.code, "rpc/internal");
        assert!(next.is_ok());
    }
}

#[tokio::test]
async fn absolute_form_target_repeated_content_type_and_any_host_are_accepted() {
    let server = must_serve(GET).await;
    let request = "POST http://whatever.example/api/Info HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";

    let answer = must_raw(&server, request.as_bytes()).await;

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-length: "), "{answer}");
    assert!(answer.contains("x-request-id: "), "{answer}");
    assert!(answer.contains("x-app-version: "), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with(r#"{"name":"tcp","version":"0"}"#), "{answer}");
}

#[tokio::test]
async fn unix_caller_is_the_process_and_the_socket_has_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let server = must_serve_unix(&path, 0o666).await;

    let info = HostApiClient(server.client()).info(&Default::default()).await.unwrap();

    assert_eq!(info.name, format!("unix {} {}", std::process::id(), nix::unistd::geteuid()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
}

#[tokio::test]
async fn live_socket_is_refused_stale_one_replaced_other_files_kept() {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live.sock");
    let server = must_serve_unix(&live, 0o600).await;
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let file = directory.path().join("file");
    std::fs::write(&file, b"x").unwrap();

    let refused = dstack_rpc::Listener::unix(&live, 0o600).await;
    let replaced = dstack_rpc::Listener::unix(&stale, 0o600).await;
    let kept = dstack_rpc::Listener::unix(&file, 0o600).await;

    assert!(matches!(refused, Err(dstack_rpc::ListenError::InUse { .. })));
    assert!(replaced.is_ok());
    assert!(matches!(kept, Err(dstack_rpc::ListenError::NotASocket { .. })));
    drop(replaced);
    assert!(!stale.exists());
    server.stop().await;
    assert!(!live.exists());
}

#[tokio::test]
async fn taken_port_is_named() {
    let server = must_serve(GET).await;

    let Err(error) = dstack_rpc::Listener::tcp(server.address()).await else { panic!("the port was given twice") };

    assert_eq!(error.to_string(), format!("{} is in use by another process", server.address()));
}

#[tokio::test]
async fn vsock_uds_asks_for_the_port_first() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let server = must_serve(GET).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let address = server.address();
    tokio::spawn(async move {
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if line == "CONNECT 8000\n" {
                stream.get_mut().write_all(b"OK 1073741824\n").await.unwrap();
                let mut upstream = tokio::net::TcpStream::connect(address).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut upstream).await });
            }
        }
    });
    let client = |port: u32| Client::new(Endpoint::parse(&format!("vsock-uds:{}:{port}/api", path.display())).unwrap());

    let found = HostApiClient(client(8000)).info(&Default::default()).await.unwrap();
    let refused = HostApiClient(client(8001)).info(&Default::default()).await.unwrap_err();

    assert_eq!(found.name, "tcp");
    assert!(refused.message.ends_with("connecting: nothing in the guest listens on port 8001"), "{}", refused.message);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(Endpoint::parse(&format!("http://{free}/api")).unwrap());

    let error = client.call("Info", Vec::new()).await.unwrap_err();

    assert_eq!(error.code, "rpc/unreachable");
    assert!(error.message.contains(&free.to_string()), "{}", error.message);
}

#[tokio::test]
async fn a_call_that_was_read_is_carried_through_without_its_caller() {
    let server = must_serve(GET).await;
    let client = server.client().with_timeout(std::time::Duration::from_millis(50));

    let gone = client.call("Notify", br#"{"event":"wait"}"#.to_vec()).await.unwrap_err();
    server.release();

    assert!(gone.message.contains("no answer within"), "{}", gone.message);
    server.wait_notified(1).await;
}

#[tokio::test]
async fn idle_connection_is_reused_and_its_loss_is_repaired() {
    let server = must_serve(GET).await;
    let client = server.client();
    let ports = [client.call("Peer", Vec::new()).await.unwrap(), client.call("Peer", Vec::new()).await.unwrap()];
    let host = Host::default();

    let address = server.address();
    server.stop().await;
    let server = echo::must_serve_at(address, host, GET).await;
    let after = client.call("Peer", Vec::new()).await.unwrap();

    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], after);
    server.stop().await;
}
