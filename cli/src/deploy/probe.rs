//! Does the app answer?

use std::time::Duration;

use dstack_rpc::{Client, ClientError, Endpoint};
use dstack_service::clock::unix_millis;
use http::StatusCode;
use tokio::time::Instant;

use crate::progress::Step;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A port that never says anything like HTTP is given up after this many connections that were open and mute.
const MUTE_LIMIT: u32 = 3;

/// Asks the URLs in turn until one gives an HTTP answer that is not a gateway's excuse.
///
/// Returns the URL, its status and the Unix time in milliseconds; `None` when time is up or no port speaks HTTP.
pub(super) async fn wait_for_http(urls: &[String], patience: Duration, step: &mut Step) -> Option<(String, StatusCode, u64)> {
    let end = Instant::now() + patience;
    let mut mute: Vec<u32> = vec![0; urls.len()];
    let mut last = None;
    while Instant::now() < end {
        for (url, mute) in urls.iter().zip(&mut mute).filter(|(_, mute)| **mute < MUTE_LIMIT) {
            match ask(url).await {
                // A front server is up before what stands behind it.
                Ok(status @ (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)) => {
                    step.update(&format!("{url} answers {status}"));
                    last = Some((url.clone(), status, unix_millis()));
                }
                Ok(status) => return Some((url.clone(), status, unix_millis())),
                Err(ClientError::Timeout(_)) => *mute += 1,
                Err(_) => {}
            }
        }
        if mute.iter().all(|mute| *mute >= MUTE_LIMIT) {
            return last;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    last
}

async fn ask(url: &str) -> Result<StatusCode, ClientError> {
    let Ok(endpoint) = Endpoint::parse(url) else { return Ok(StatusCode::NOT_FOUND) };
    Ok(Client::new(endpoint).with_timeout(REQUEST_TIMEOUT).get("/").await?.status)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::{Router, routing::get};
    use dstack_rpc::{Listener, serve};

    use super::*;
    use crate::{
        output::{Output, Palette},
        progress::Progress,
    };

    #[tokio::test]
    async fn waits_until_the_app_behind_the_front_server_answers() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let answer = || async { if ASKED.fetch_add(1, Ordering::SeqCst) < 2 { StatusCode::BAD_GATEWAY } else { StatusCode::OK } };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, Router::new().route("/", get(answer)), std::future::pending()));
        let output = Output { is_json: true, palette: Palette::PLAIN, error_palette: Palette::PLAIN, is_live: false };
        let mut step = Progress::new(output).step("x");

        let found = wait_for_http(std::slice::from_ref(&url), Duration::from_secs(20), &mut step).await.unwrap();

        assert_eq!((found.0, found.1, ASKED.load(Ordering::SeqCst)), (url, StatusCode::OK, 3));
    }
}
