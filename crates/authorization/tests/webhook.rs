//! The webhook backend against services that behave and services that do not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dstack_api::{UserFacing as _, policy_webhook::PolicyBootInfo};
use dstack_authorization::{Backend, BootFacts, Denial, Permission, Subject, Webhook, parse_boot_info};
use dstack_rpc::Endpoint;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const TIMEOUT: Duration = Duration::from_millis(300);

fn facts() -> BootFacts {
    let info = PolicyBootInfo {
        tee_variant: "dstack-tdx".into(),
        app_id: "02".repeat(20),
        compose_hash: "03".repeat(32),
        device_id: "04".repeat(32),
        tcb_status: "UpToDate".into(),
        ..Default::default()
    };
    parse_boot_info(&info).unwrap()
}

/// A service that does with each connection what `behave` does; how many connections there were.
async fn service<F>(behave: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> (String, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/base", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(behave(stream));
        }
    });
    (url, count)
}

/// A service that answers each request with these bytes.
async fn answering(answer: impl Into<Vec<u8>>) -> String {
    let answer = Arc::new(answer.into());
    let (url, _) = service(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            while read_request(&mut stream).await.is_some() {
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
        }
    })
    .await;
    url
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(buffer.get(..read)?);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

async fn ask(url: &str) -> Result<Permission, Denial> {
    let webhook = Webhook::new(&Endpoint::parse(url).unwrap(), TIMEOUT, false);
    webhook.decide(Subject::App, &facts()).await
}

async fn refused(url: &str) -> Denial {
    let started = Instant::now();
    let denial = ask(url).await.expect_err("the boot was allowed");
    assert!(started.elapsed() < Duration::from_secs(5), "the refusal took {:?}", started.elapsed());
    denial
}

#[tokio::test]
async fn the_question_is_the_one_that_deployed_services_know() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let (url, connections) = service(move |mut stream| {
        let heard = Arc::clone(&heard);
        async move {
            while let Some(request) = read_request(&mut stream).await {
                heard.lock().unwrap().push(request);
                let body = format!(r#"{{"isAllowed":true,"gatewayAppId":"{}","reason":""}}"#, "09".repeat(20));
                stream.write_all(&http("200 OK", body.as_bytes())).await.unwrap();
            }
        }
    })
    .await;
    let webhook = Webhook::new(&Endpoint::parse(&url).unwrap(), TIMEOUT, false);

    let permission = webhook.decide(Subject::App, &facts()).await.unwrap();
    for _ in 0..8 {
        webhook.decide(Subject::Kms, &facts()).await.unwrap();
    }

    assert_eq!(permission.gateway_app_id.unwrap().to_string(), "09".repeat(20));
    assert_eq!(webhook.gateway_app_id(), permission.gateway_app_id, "remembered, so that nobody needs to ask");
    let asked = asked.lock().unwrap();
    assert!(asked[0].starts_with("POST /base/bootAuth/app HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[1].starts_with("POST /base/bootAuth/kms HTTP/1.1\r\n"));
    assert!(asked[0].contains("user-agent: dstack-kms/"), "{}", asked[0]);
    assert!(asked[0].contains(&format!(r#""appId":"{}""#, "02".repeat(20))));
    assert!(connections.load(Ordering::SeqCst) < asked.len(), "connections are kept");
}

#[tokio::test]
async fn a_no_is_a_no_with_its_reason_for_the_operator() {
    let url = answering(http("200 OK", "{\"isAllowed\":false,\"gatewayAppId\":\"\",\"reason\":\"wörld\\u001b[2J\"}".as_bytes())).await;

    assert_eq!(refused(&url).await, Denial::Backend { reason: "wörld [2J".into() });
}

/// The byte at which a careless reader would cut lies inside a character.
#[tokio::test]
async fn a_long_reason_of_wide_characters_is_cut_at_a_character() {
    let body = format!(r#"{{"isAllowed":false,"reason":"a{}"}}"#, "é".repeat(1000));
    let url = answering(http("200 OK", body.as_bytes())).await;

    let Denial::Backend { reason } = refused(&url).await else { panic!("another denial") };
    assert!(reason.len() <= 500 && reason.ends_with('é'));
}

#[tokio::test]
async fn everything_but_a_clear_yes_is_refused() {
    let yes = br#"{"isAllowed":true}"#;
    for (name, answer) in [
        ("server error with a yes", http("500 Internal Server Error", yes)),
        ("bad request with a yes", http("400 Bad Request", yes)),
        ("empty", http("200 OK", b"")),
        ("not JSON", http("200 OK", b"<html>true</html>")),
        ("text for a truth", http("200 OK", br#"{"isAllowed":"true"}"#)),
        ("number for a truth", http("200 OK", br#"{"isAllowed":1}"#)),
        ("no decision", http("200 OK", br#"{"reason":"fine"}"#)),
        ("two decisions", http("200 OK", br#"{"isAllowed":false,"isAllowed":true}"#)),
        ("more behind it", http("200 OK", br#"{"isAllowed":true} {"isAllowed":true}"#)),
        ("a list", http("200 OK", br#"[{"isAllowed":true}]"#)),
        ("invalid UTF-8", http("200 OK", b"{\"isAllowed\":true,\"reason\":\"\xff\xfe\"}")),
        ("a gateway that is none", http("200 OK", br#"{"isAllowed":true,"gatewayAppId":"zz"}"#)),
        ("not HTTP", b"SSH-2.0-OpenSSH\r\n".to_vec()),
        ("a body that ends early", b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\nconnection: close\r\n\r\n{\"isAllowed\":true}".to_vec()),
    ] {
        let denial = refused(&answering(answer).await).await;

        assert_eq!(denial.code(), "kms/policy-unavailable", "{name}");
        assert!(!denial.fix().is_empty());
    }
    assert!(ask(&answering(http("200 OK", yes)).await).await.is_ok(), "the plain yes is one");
}

#[tokio::test]
async fn nobody_there_is_a_no() {
    assert_eq!(refused("http://127.0.0.1:1").await.code(), "kms/policy-unavailable");
}

#[tokio::test]
async fn a_service_that_hangs_is_left_after_the_timeout() {
    let (silent, _) = service(|stream| async move {
        let _kept_open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let (dripping, _) = service(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    for url in [silent, dripping] {
        assert!(refused(&url).await.to_string().contains("no answer within"));
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off_early() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let (url, _) = service(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
            while stream.write_all(&[b' '; 65_536]).await.is_ok() {
                counter.fetch_add(65_536, Ordering::SeqCst);
            }
        }
    })
    .await;

    assert!(refused(&url).await.to_string().contains("exceeds"));
    assert!(sent.load(Ordering::SeqCst) < 32 << 20, "{} bytes were taken", sent.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, contacted) = service(|mut stream| async move {
        let _ = stream.write_all(&http("200 OK", br#"{"isAllowed":true}"#)).await;
    })
    .await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let answer = format!("HTTP/1.1 {status}\r\nlocation: {elsewhere}/bootAuth/app\r\ncontent-length: 0\r\n\r\n");

        assert!(refused(&answering(answer).await).await.to_string().contains("HTTP 30"));
    }
    assert_eq!(contacted.load(Ordering::SeqCst), 0);
}
