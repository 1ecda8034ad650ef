//! Requests that no client of ours would send: answered or hung up on, and the next one is served.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use http::StatusCode;
use testbed::{NOW, Service, Web, settings};

/// What comes back for these bytes, until the service hangs up.
async fn talk(service: &Service, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> String {
    let address = service.address;
    let exchange = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for piece in pieces {
            if stream.write_all(&piece).is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        let _end = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    exchange.await.unwrap()
}

fn post(body: &[u8]) -> Vec<u8> {
    [format!("POST /verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_an_answer_or_the_door_and_the_next_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = Web::file(None).await;
    let file = dstack_verifier::config::ConfigFile { max_body_kib: 64, ..settings(dir.path(), &nobody, None) };
    let service = Service::start(file, NOW).await;
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();

    let deep = [b"{\"quote\":".as_slice(), &[b'['; 60_000]].concat();
    for body in [deep.as_slice(), b"\xff\xfe{}", b"{\"quote\":\"\xc3\x28\"}", b"{\"debug\":\"yes\"}", b"[1,2,3]", &[0; 60_000]] {
        let answer = talk(&service, std::iter::once(post(body))).await;
        assert_eq!(status(&answer), "400", "{answer}");
        assert!(answer.contains("verifier/no-evidence") && answer.contains("fix"), "{answer}");
    }
    let chunks = (0..10_000).map(|number: u32| match number {
        0 => b"POST /verify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
        _ => [b"1000\r\n".as_slice(), &[b'a'; 4096], b"\r\n"].concat(),
    });
    let endless = talk(&service, chunks).await;
    assert!(endless.is_empty() || status(&endless) == "413", "{endless}");
    let headers = (0..10_000).map(|number: u32| match number {
        0 => b"POST /verify HTTP/1.1\r\nHost: x\r\n".to_vec(),
        _ => [b"X: ".as_slice(), &[b'a'; 1000], b"\r\n"].concat(),
    });
    let endless = talk(&service, headers).await;
    assert!(endless.is_empty() || status(&endless).starts_with('4'), "{endless}");
    for request in
        [b"\x16\x03\x01\x02\x00\x01".as_slice(), b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"SSH-2.0-x\r\n\r\n"]
    {
        let answer = talk(&service, std::iter::once(request.to_vec())).await;
        assert!(answer.is_empty() || status(&answer) == "400", "{answer}");
    }

    assert_eq!(service.get("/health").await.0, StatusCode::OK);
}
