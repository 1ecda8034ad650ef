//! Load from this process.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use dstack_api::kms::KmsClient;
use dstack_rpc::Client;
use futures_util::future::join_all;

type Kms = KmsClient<Client>;

/// Times of many calls.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    /// The time that `percent` of the calls stayed below.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

/// `total` calls, each client one at a time.
pub(crate) async fn calls(clients: &[Kms], total: u32, call: impl AsyncFn(&Kms)) {
    let next = AtomicU32::new(0);
    let work = async |client: &Kms| {
        while next.fetch_add(1, Ordering::Relaxed) < total {
            call(client).await;
        }
    };
    join_all(clients.iter().map(work)).await;
}

/// Calls per second when each client calls again as soon as it has its answer.
pub(crate) async fn saturation(clients: &[Kms], time: Duration, call: impl AsyncFn(&Kms)) -> f64 {
    let started = Instant::now();
    let done = AtomicU32::new(0);
    let work = async |client: &Kms| {
        while started.elapsed() < time {
            call(client).await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    join_all(clients.iter().map(work)).await;
    f64::from(done.into_inner()) / started.elapsed().as_secs_f64()
}

/// Latencies at `rate` calls per second, counted from the moment a call was due, so that waiting for a slow one before it counts.
pub(crate) async fn latency(clients: &[Kms], rate: f64, time: Duration, call: impl AsyncFn(&Kms)) -> Latencies {
    let started = Instant::now();
    let (every, total) = (Duration::from_secs_f64(1.0 / rate), (rate * time.as_secs_f64()) as u32);
    let next = AtomicU32::new(0);
    let work = async |client: &Kms| {
        let mut latencies = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= total {
                return latencies;
            }
            let due = started + every * index;
            tokio::time::sleep_until(due.into()).await;
            call(client).await;
            latencies.push(due.elapsed());
        }
    };
    let mut all = join_all(clients.iter().map(work)).await.concat();
    all.sort();
    Latencies(all)
}
