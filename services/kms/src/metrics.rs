//! Counters, in the text form of Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper ends of the histogram's buckets, in milliseconds.
const BUCKETS_MS: [u64; 9] = [1, 2, 5, 10, 20, 100, 500, 2000, 10_000];

/// What the service has done.
#[derive(Default)]
pub(crate) struct Metrics {
    /// By call.
    releases: Mutex<BTreeMap<&'static str, u64>>,
    /// By code; codes are constants of this program, so there are few.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    buckets: [AtomicU64; BUCKETS_MS.len()],
    micros: AtomicU64,
    unlogged: AtomicU64,
}

fn count(counters: &Mutex<BTreeMap<&'static str, u64>>, label: &'static str) {
    *counters.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
}

impl Metrics {
    pub(crate) fn released(&self, method: &'static str, elapsed: Duration) {
        count(&self.releases, method);
        for (bucket, end) in self.buckets.iter().zip(BUCKETS_MS) {
            if elapsed <= Duration::from_millis(end) {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.micros.fetch_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, code: &'static str) {
        count(&self.refusals, code);
    }

    /// A release that did not happen because it could not be logged.
    pub(crate) fn unlogged(&self) {
        self.unlogged.fetch_add(1, Ordering::Relaxed);
    }

    /// The whole page. `limited`: refused for calling too often, of sources and of apps; `log_entries`: size of the release log.
    pub(crate) fn render(&self, limited: [u64; 2], log_entries: u64) -> String {
        let mut page = String::with_capacity(4096);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        head(&mut page, "releases_total", "counter", "Keys and certificates that went out.");
        let releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (method, value) in &releases {
            sample(&mut page, "releases_total", &format!("{{method=\"{method}\"}}"), value);
        }
        head(&mut page, "refusals_total", "counter", "Calls that got nothing.");
        for (code, value) in self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sample(&mut page, "refusals_total", &format!("{{code=\"{code}\"}}"), value);
        }
        head(&mut page, "release_seconds", "histogram", "Time from a call to its release, the log included.");
        let all: u64 = releases.values().sum();
        for (bucket, end) in self.buckets.iter().zip(BUCKETS_MS) {
            let end = Duration::from_millis(end).as_secs_f64();
            sample(&mut page, "release_seconds_bucket", &format!("{{le=\"{end}\"}}"), read(bucket));
        }
        sample(&mut page, "release_seconds_bucket", "{le=\"+Inf\"}", all);
        sample(&mut page, "release_seconds_sum", "", Duration::from_micros(read(&self.micros)).as_secs_f64());
        sample(&mut page, "release_seconds_count", "", all);
        head(&mut page, "rate_limited_total", "counter", "Calls refused because there were too many.");
        for (by, value) in ["source", "app"].into_iter().zip(limited) {
            sample(&mut page, "rate_limited_total", &format!("{{by=\"{by}\"}}"), value);
        }
        head(&mut page, "unlogged_releases_total", "counter", "Releases that did not happen because they could not be logged.");
        sample(&mut page, "unlogged_releases_total", "", read(&self.unlogged));
        head(&mut page, "release_log_entries", "gauge", "Entries of the release log.");
        sample(&mut page, "release_log_entries", "", log_entries);
        page
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP dstack_kms_{name} {help}\n# TYPE dstack_kms_{name} {kind}");
}

fn sample(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(page, "dstack_kms_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_under_its_labels_and_cumulates_its_buckets() {
        let metrics = Metrics::default();
        metrics.released("GetAppKey", Duration::from_micros(1500));
        metrics.refused("kms/app-not-allowed");

        let page = metrics.render([3, 4], 9);

        for line in [
            "dstack_kms_releases_total{method=\"GetAppKey\"} 1",
            "dstack_kms_refusals_total{code=\"kms/app-not-allowed\"} 1",
            "dstack_kms_release_seconds_bucket{le=\"0.001\"} 0",
            "dstack_kms_release_seconds_bucket{le=\"0.002\"} 1",
            "dstack_kms_release_seconds_bucket{le=\"+Inf\"} 1",
            "dstack_kms_release_seconds_sum 0.0015",
            "dstack_kms_rate_limited_total{by=\"source\"} 3",
            "dstack_kms_rate_limited_total{by=\"app\"} 4",
            "dstack_kms_release_log_entries 9",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
