//! Counters, in the text form of Prometheus.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dstack_ra_tls::collateral::CollateralCounters;

use crate::Refusal;

/// Upper ends of the histogram's buckets, in milliseconds.
const BUCKETS_MS: [u64; 8] = [1, 2, 5, 20, 100, 500, 2000, 10_000];

/// The words of verdicts.
pub(crate) const VERDICTS: [&str; 5] = ["VERIFIED", "VERIFIED WITH CAVEATS", "SIMULATED", "NOT VERIFIED", "UNDECIDED"];

/// What the service has done.
#[derive(Default)]
pub(crate) struct Metrics {
    verdicts: [AtomicU64; VERDICTS.len()],
    refusals: [AtomicU64; Refusal::CODES.len()],
    buckets: [AtomicU64; BUCKETS_MS.len()],
    micros: AtomicU64,
    in_flight: AtomicU64,
}

/// A request that is being answered.
pub(crate) struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }

    pub(crate) fn judged(&self, verdict: &str, elapsed: Duration) {
        count_at(&self.verdicts, &VERDICTS, verdict);
        for (bucket, end) in self.buckets.iter().zip(BUCKETS_MS) {
            if elapsed <= Duration::from_millis(end) {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.micros.fetch_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, code: &str) {
        count_at(&self.refusals, &Refusal::CODES, code);
    }

    /// The whole page.
    pub(crate) fn render(&self, collateral: CollateralCounters, image_downloads: u64) -> String {
        let mut page = String::with_capacity(4096);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        head(&mut page, "verdicts_total", "counter", "Requests that got a verdict.");
        for (counter, verdict) in self.verdicts.iter().zip(VERDICTS) {
            sample(&mut page, "verdicts_total", &format!("{{verdict=\"{verdict}\"}}"), read(counter));
        }
        head(&mut page, "refused_requests_total", "counter", "Requests that got none.");
        for (counter, code) in self.refusals.iter().zip(Refusal::CODES) {
            sample(&mut page, "refused_requests_total", &format!("{{code=\"{code}\"}}"), read(counter));
        }
        head(&mut page, "verdict_seconds", "histogram", "Time from a request's head to its verdict.");
        let all: u64 = self.verdicts.iter().map(read).sum();
        for (bucket, end) in self.buckets.iter().zip(BUCKETS_MS) {
            let end = Duration::from_millis(end).as_secs_f64();
            sample(&mut page, "verdict_seconds_bucket", &format!("{{le=\"{end}\"}}"), read(bucket));
        }
        sample(&mut page, "verdict_seconds_bucket", "{le=\"+Inf\"}", all);
        sample(&mut page, "verdict_seconds_sum", "", Duration::from_micros(read(&self.micros)).as_secs_f64());
        sample(&mut page, "verdict_seconds_count", "", all);
        head(&mut page, "requests_in_flight", "gauge", "Requests that are being answered.");
        sample(&mut page, "requests_in_flight", "", read(&self.in_flight));
        let CollateralCounters { hits, fetches, failures, stale } = collateral;
        let more = [
            ("collateral_hits_total", "Collateral answered from the cache.", hits),
            ("collateral_fetches_total", "Collateral fetched.", fetches),
            ("collateral_failures_total", "Fetches of collateral that failed.", failures),
            ("collateral_stale_total", "Collateral used past its time because its source was down.", stale),
            ("image_downloads_total", "Downloads of OS images that were started.", image_downloads),
        ];
        for (name, help, value) in more {
            head(&mut page, name, "counter", help);
            sample(&mut page, name, "", value);
        }
        page
    }
}

fn count_at(counters: &[AtomicU64], names: &[&str], name: &str) {
    if let Some(counter) = names.iter().position(|known| *known == name).and_then(|index| counters.get(index)) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP dstack_verifier_{name} {help}\n# TYPE dstack_verifier_{name} {kind}");
}

fn sample(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(page, "dstack_verifier_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_under_its_labels_and_cumulates_its_buckets() {
        let metrics = Metrics::default();
        metrics.judged("SIMULATED", Duration::from_micros(1500));
        metrics.refused("verifier/busy");
        let _open = metrics.begin();

        let page = metrics.render(CollateralCounters { hits: 7, ..CollateralCounters::default() }, 3);

        for line in [
            "dstack_verifier_verdicts_total{verdict=\"SIMULATED\"} 1",
            "dstack_verifier_refused_requests_total{code=\"verifier/busy\"} 1",
            "dstack_verifier_verdict_seconds_bucket{le=\"0.001\"} 0",
            "dstack_verifier_verdict_seconds_bucket{le=\"0.002\"} 1",
            "dstack_verifier_verdict_seconds_bucket{le=\"+Inf\"} 1",
            "dstack_verifier_requests_in_flight 1",
            "dstack_verifier_collateral_hits_total 7",
            "dstack_verifier_image_downloads_total 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
