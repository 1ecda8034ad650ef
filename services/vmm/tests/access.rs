//! Who may call, and what a browser can be made to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod node;

use dstack_rpc::{Answer, Client, Endpoint};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::HeaderName};
use node::{Node, TOKEN, configuration, until};

#[tokio::test]
async fn supervisor_main() {
    node::run_supervisor_if_asked().await;
}

async fn ask(node: &Node, method: Method, path: &str, headers: &[(&'static str, &str)]) -> Answer {
    let client = Client::new(Endpoint::parse(&node.address).unwrap());
    let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
    client.request(method, path, HeaderMap::from_iter(headers), Vec::new()).await.unwrap()
}

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let node = Node::start("").await;
    for path in ["/prpc/Status", "/prpc/Version", "/guest/Info?id=x", "/logs?id=x"] {
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", TOKEN)]] {
            let answer = ask(&node, Method::GET, path, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(String::from_utf8(answer.body).unwrap().contains("vmm/unauthorized"));
        }
    }
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(ask(&node, Method::GET, "/prpc/Status", &[("authorization", &bearer)]).await.status, StatusCode::OK);
    assert_eq!(ask(&node, Method::GET, &format!("/prpc/Status?token={TOKEN}"), &[]).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn other_sites_and_rebound_names_are_refused() {
    let node = Node::start("").await;
    let bearer = format!("Bearer {TOKEN}");
    let foreign = [("host", "evil.example"), ("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")];
    for header in foreign {
        let answer = ask(&node, Method::POST, "/prpc/Status?json", &[("authorization", &bearer), header]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{header:?}");
    }
    let own = node.address.strip_prefix("http://").unwrap();
    let same = [("authorization", bearer.as_str()), ("host", own), ("origin", node.address.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(ask(&node, Method::POST, "/prpc/Status?json", &same).await.status, StatusCode::OK);
}

#[tokio::test]
async fn get_changes_nothing() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/prpc/RemoveVm", "/prpc/StopVm", "/prpc/ShutdownVm", "/prpc/Vmm.RemoveVm", "/guest/Shutdown"] {
        let answer = ask(&node, Method::GET, &format!("{path}?id={vm}"), &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    assert_eq!(node.info(&vm).await.status, "running");
}

#[tokio::test]
async fn the_console_is_self_contained() {
    let node = Node::start("").await;
    let page = ask(&node, Method::GET, "/", &[]).await;

    assert_eq!(page.status, StatusCode::OK);
    assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let text = String::from_utf8(page.body).unwrap();
    assert!(!text.contains("://") && !text.contains("{{"), "{text}");
    for path in ["/console.js", "/console.css"] {
        assert_eq!(ask(&node, Method::GET, path, &[]).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn logs_are_streamed() {
    let node = Node::start("").await;
    let vm = node.create(&configuration()).await.unwrap();
    let bearer = format!("Bearer {TOKEN}");
    let authorized = [("authorization", bearer.as_str())];
    let serial = node.vm_dir(&vm).join("serial.log");
    until(async || std::fs::read_to_string(&serial).is_ok_and(|text| text.contains("-append"))).await;

    let log = ask(&node, Method::GET, &format!("/logs?id={vm}"), &authorized).await;
    assert!(log.body.starts_with(b"guest console line\n"));
    let log = ask(&node, Method::GET, &format!("/logs?id={vm}&ch=stderr"), &authorized).await;
    assert_eq!((log.status, log.body.len()), (StatusCode::OK, 0));
    assert_eq!(ask(&node, Method::GET, &format!("/logs?id={vm}&ch=other"), &authorized).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&node, Method::GET, "/logs?id=../..", &authorized).await.status, StatusCode::BAD_REQUEST);
    let client = Client::new(Endpoint::parse(&node.address).unwrap()).with_bearer(TOKEN);
    let mut stream = client.stream(&format!("/logs?id={vm}&follow=true&lines=0")).await.unwrap();
    use std::io::Write as _;
    let mut writer = std::fs::File::options().append(true).open(&serial).unwrap();
    let mut seen = String::new();
    while !seen.contains("appended later\n") {
        writer.write_all(b"appended later\n").unwrap();
        seen.push_str(str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
    }
}
