//! What a hostile or broken peer can do: little, and not for long.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod echo;

use std::time::Duration;

use dstack_api::Transport as _;
use dstack_rpc::{BODY_LIMIT, GetPolicy, Limits};
use echo::{Host, must_serve, must_serve_limited};
use http::{HeaderMap, Method};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[tokio::test]
async fn body_at_the_limit_is_read_one_byte_more_is_refused() {
    let server = must_serve(GetPolicy::Refuse).await;
    let padded = |length: usize| {
        let mut body = b"{\"event\":\"e\"".to_vec();
        body.resize(length - 1, b' ');
        body.push(b'}');
        body
    };

    let at_limit = server.client().call("Notify", padded(BODY_LIMIT)).await;
    let above = server.client().request(Method::POST, "/api/Notify?json", HeaderMap::new(), padded(BODY_LIMIT + 1)).await.unwrap();

    assert_eq!(at_limit.unwrap(), b"null");
    assert_eq!(above.status.as_u16(), 413);
    assert!(String::from_utf8(above.body).unwrap().contains("rpc/too-large"));
    assert_eq!(server.notified(), 1);
}

#[tokio::test]
async fn chunked_body_is_limited_too() {
    let server = must_serve(GetPolicy::Refuse).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(b"POST /api/Notify?json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 0x10_0000], b"\r\n"].concat();
        // The server stops reading at the limit; then writing fails.
        while writer.write_all(&chunk).await.is_ok() {}
    });

    let mut answer = vec![0; 12];
    reader.read_exact(&mut answer).await.unwrap();

    assert_eq!(answer, b"HTTP/1.1 413");
    drop(reader);
    writing.await.unwrap();
}

#[tokio::test]
async fn slow_head_is_cut_and_others_are_served_meanwhile() {
    let limits = Limits { header_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = must_serve_limited("127.0.0.1:0".parse().unwrap(), Host::default(), GetPolicy::Refuse, limits).await;
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    slow.write_all(b"POST /api/Info HTTP/1.1\r\nHo").await.unwrap();

    let other = server.client().call("Info", Vec::new()).await;
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await;

    assert!(other.is_ok());
    assert!(end.is_ok(), "the connection stayed open");
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_their_turn() {
    let limits = Limits { connections: 1, header_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = must_serve_limited("127.0.0.1:0".parse().unwrap(), Host::default(), GetPolicy::Refuse, limits).await;
    let _holder = TcpStream::connect(server.address()).await.unwrap();

    let served = server.client().call("Info", Vec::new()).await;

    assert!(served.is_ok(), "the held slot was never given back");
}

#[tokio::test]
async fn answer_beyond_the_clients_limit_is_refused() {
    let server = must_serve(GetPolicy::Refuse).await;

    let error = server.client().with_answer_limit(8).call("Info", Vec::new()).await.unwrap_err();

    assert_eq!(error.code, "rpc/answer-too-large");
}

#[tokio::test]
async fn peer_that_never_answers_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/api", listener.local_addr().unwrap()).parse().unwrap();
    let client = dstack_rpc::Client::new(endpoint).with_timeout(Duration::from_millis(100));

    let error = client.call("Info", Vec::new()).await.unwrap_err();

    assert_eq!(error.code, "rpc/unreachable");
}

#[tokio::test]
async fn running_calls_are_answered_before_the_server_ends() {
    let server = must_serve(GetPolicy::Refuse).await;
    let client = server.client();
    let call = tokio::spawn(async move { client.call("Notify", br#"{"event":"wait"}"#.to_vec()).await });
    server.wait_started().await;

    server.release();
    server.stop().await;

    assert_eq!(call.await.unwrap().unwrap(), b"null");
}
