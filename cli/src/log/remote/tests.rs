#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use dstack_release_log::{EventKind, LogKey, encode_record};
use dstack_rpc::{Endpoint, Listener};

use super::*;

fn key() -> LogKey {
    LogKey::new("kms.test/log/1", &[7; 32]).unwrap()
}

fn entry(number: u64) -> Vec<u8> {
    Entry::new(EventKind::Release, number).encode().unwrap()
}

/// A log that says whatever a test puts in: its entries, and the tree it signs.
#[derive(Clone, Default)]
struct TestLog {
    entries: Arc<Mutex<Vec<Vec<u8>>>>,
    signed: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl TestLog {
    /// Both to the same entries.
    fn set(&self, numbers: impl IntoIterator<Item = u64>) {
        let entries: Vec<Vec<u8>> = numbers.into_iter().map(entry).collect();
        self.entries.lock().unwrap().clone_from(&entries);
        *self.signed.lock().unwrap() = entries;
    }

    fn head(&self) -> TreeHead {
        let mut frontier = Frontier::default();
        frontier.append(self.signed.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Vec::as_slice));
        frontier.head()
    }

    async fn serve(&self) -> RemoteLog {
        let (one, two) = (self.clone(), self.clone());
        let router = Router::new()
            .route("/log/checkpoint", get(move || async move { key().sign(one.head()) }))
            .route("/log/tile/entries/{*path}", get(move |Path(path): Path<String>| async move { two.bundle(&path) }));
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
        RemoteLog { client: Client::new(endpoint), verifier: key().verifier(), frontier: Frontier::default() }
    }

    fn bundle(&self, path: &str) -> Result<Vec<u8>, StatusCode> {
        let (number, width) = path.split_once(".p/").unwrap_or((path, "256"));
        let (number, width): (usize, usize) = (number.parse().unwrap(), width.parse().unwrap());
        let entries = self.entries.lock().unwrap();
        let chunk = entries.chunks(256).nth(number).ok_or(StatusCode::NOT_FOUND)?;
        Ok(chunk.iter().take(width).flat_map(|entry| encode_record(entry).unwrap()).collect())
    }
}

async fn advance(log: &mut RemoteLog) -> Outcome<Vec<u64>> {
    let target = log.checkpoint().await?.head;
    let mut seen = Vec::new();
    log.advance(target, |_, entry| seen.push(entry.time)).await?;
    Ok(seen)
}

#[tokio::test]
async fn a_log_that_grows_is_read_once_and_to_the_end() {
    let test = TestLog::default();
    let mut log = test.serve().await;
    for (from, to) in [(0, 3), (3, 3), (3, 300), (300, 600)] {
        test.set(0..to);

        assert_eq!(advance(&mut log).await.unwrap(), (from..to).collect::<Vec<_>>());
    }
    assert_eq!(log.frontier().size(), 600);
}

#[tokio::test]
async fn what_was_verified_earlier_is_gone_on_from() {
    let test = TestLog::default();
    test.set(0..300);
    let mut first = test.serve().await;
    advance(&mut first).await.unwrap();
    test.set(0..301);
    let mut second = test.serve().await.resume(first.frontier().clone());

    assert_eq!(advance(&mut second).await.unwrap(), [300]);
}

#[tokio::test]
async fn a_log_that_lies_is_caught_and_nothing_of_it_is_shown() {
    let test = TestLog::default();
    test.set(0..10);
    let mut log = test.serve().await;
    advance(&mut log).await.unwrap();
    let mut refused = async || advance(&mut log).await.unwrap_err().report.code;

    test.set(0..9);
    assert_eq!(refused().await, "log/shrank");
    test.set((0..9).chain([77]));
    assert_eq!(refused().await, "log/forked", "the same size with another past");
    test.set((0..9).chain([77, 10, 11]));
    assert_eq!(refused().await, "log/forked", "grown from another past");
    test.set(0..12);
    test.entries.lock().unwrap()[11] = entry(99);
    assert_eq!(refused().await, "log/forked", "another entry than was signed");
    test.set(0..12);
    test.entries.lock().unwrap().truncate(11);
    assert_eq!(refused().await, "log/bad-entries", "fewer entries than were signed");
    test.set(0..12);
    for list in [&test.entries, &test.signed] {
        list.lock().unwrap()[11] = b"{}".to_vec();
    }
    assert_eq!(refused().await, "log/bad-entries", "no entry");
    test.set(0..12);
    assert_eq!(advance(&mut log).await.unwrap(), [10, 11], "the honest log is still accepted");
}
