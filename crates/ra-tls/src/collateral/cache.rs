//! Papers by what they are published for: how long they are used, and who asks for them.

use std::{
    fmt,
    hash::Hash,
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dstack_attestation::{Endorsements, sha256_of_parts};

use super::{
    FetchError,
    slots::{Contents, Slots},
};

/// Least time between two fetches of the same papers: neither expired papers nor a failing service become a flood.
const MIN_INTERVAL: u64 = 10;

/// How long collateral is kept, and of how many platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollateralLimits {
    /// Asked for again after this time, however long the vendor allows.
    pub max_age: Duration,
    /// How long after that what is at hand is still used while the service does not answer. Never past the vendor's own date: the
    /// verification refuses expired collateral wherever it comes from.
    pub max_stale: Duration,
    /// Platform models (Intel) or chips (AMD) remembered.
    pub platforms: usize,
}

impl Default for CollateralLimits {
    /// A day, nothing stale, 256 platforms.
    fn default() -> Self {
        Self { max_age: Duration::from_secs(24 * 3600), max_stale: Duration::ZERO, platforms: 256 }
    }
}

/// Papers at hand.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) endorsements: Arc<Endorsements>,
    /// SHA-256 of their content.
    pub(crate) digest: [u8; 32],
    fetched_at: u64,
    next_update: u64,
}

impl Held {
    /// For evidence that brings its papers along: there are none, and they do not end.
    pub(crate) fn nothing() -> Self {
        Self { endorsements: Arc::default(), digest: [0; 32], fetched_at: 0, next_update: u64::MAX }
    }
}

/// Papers as a service gave them.
pub(super) struct Fetched {
    pub(super) endorsements: Endorsements,
    /// Unix seconds of the earliest of their ends. Without, they are asked for again as soon as the interval allows.
    pub(super) next_update: Option<u64>,
}

/// What a client has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollateralCounters {
    /// Answered from the cache.
    pub hits: u64,
    /// Fetched.
    pub fetches: u64,
    /// Fetches that failed.
    pub failures: u64,
    /// Answered with stale collateral because the service did not answer.
    pub stale: u64,
}

impl Add for CollateralCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            fetches: self.fetches + other.fetches,
            failures: self.failures + other.failures,
            stale: self.stale + other.stale,
        }
    }
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    fetches: AtomicU64,
    failures: AtomicU64,
    stale: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Unix seconds.
pub(super) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Papers by `K`, what they are published for. Clones share them.
#[derive(Clone)]
pub(super) struct Cache<K> {
    limits: CollateralLimits,
    slots: Arc<Slots<K>>,
    counters: Arc<Counters>,
    clock: Clock,
}

impl<K: Copy + Eq + Hash + fmt::Display> Cache<K> {
    pub(super) fn new() -> Self {
        let limits = CollateralLimits::default();
        Self { limits, slots: Arc::new(Slots::new(limits.platforms)), counters: Arc::default(), clock: Arc::new(unix_now) }
    }

    /// An empty one.
    pub(super) fn with_limits(self, limits: CollateralLimits) -> Self {
        Self { slots: Arc::new(Slots::new(limits.platforms)), limits, ..self }
    }

    pub(super) fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    pub(super) fn now(&self) -> u64 {
        (self.clock)()
    }

    pub(super) fn counters(&self) -> CollateralCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { hits, fetches, failures, stale } = &*self.counters;
        CollateralCounters { hits: read(hits), fetches: read(fetches), failures: read(failures), stale: read(stale) }
    }

    /// What is fresh, without waiting and without any request.
    pub(super) fn at_hand(&self, key: K) -> Option<Arc<Held>> {
        let slot = self.slots.peek(key)?;
        let contents = slot.try_lock().ok()?;
        self.fresh(&contents, self.now())
    }

    /// What is fresh, else what `fetch` gives, which runs for one caller at a time; the others wait for its result.
    pub(super) async fn held(&self, key: K, fetch: impl Future<Output = Result<Fetched, FetchError>>) -> Result<Arc<Held>, FetchError> {
        let slot = self.slots.slot(key)?;
        let mut contents = slot.lock().await;
        let now = self.now();
        if let Some(held) = self.fresh(&contents, now) {
            count(&self.counters.hits);
            return Ok(held);
        }
        let recent = |at: u64| now >= at && now - at < MIN_INTERVAL;
        let failure = match contents.failure.take().filter(|(at, _)| recent(*at)) {
            Some(failure) => failure,
            None => match fetch.await {
                Ok(fetched) => return Ok(self.keep(&mut contents, key, fetched, now)),
                Err(error) => {
                    count(&self.counters.failures);
                    tracing::warn!(platform = %key, %error, "collateral cannot be fetched");
                    (now, error)
                }
            },
        };
        let error = failure.1.clone();
        contents.failure = Some(failure);
        self.stale(&contents, now).ok_or(error)
    }

    fn keep(&self, contents: &mut Contents, key: K, fetched: Fetched, now: u64) -> Arc<Held> {
        count(&self.counters.fetches);
        tracing::info!(platform = %key, "collateral fetched");
        let held = Arc::new(Held {
            digest: digest_of(&fetched.endorsements),
            next_update: fetched.next_update.unwrap_or(now),
            endorsements: Arc::new(fetched.endorsements),
            fetched_at: now,
        });
        contents.held = Some(Arc::clone(&held));
        contents.failure = None;
        held
    }

    fn fresh(&self, contents: &Contents, now: u64) -> Option<Arc<Held>> {
        let held = contents.held.as_ref().filter(|held| now >= held.fetched_at)?;
        let fresh_until = held.next_update.min(held.fetched_at.saturating_add(self.limits.max_age.as_secs()));
        let is_fresh = now < fresh_until || now < held.fetched_at.saturating_add(MIN_INTERVAL);
        is_fresh.then(|| Arc::clone(held))
    }

    fn stale(&self, contents: &Contents, now: u64) -> Option<Arc<Held>> {
        let held = contents.held.as_ref().filter(|held| now >= held.fetched_at)?;
        let stale_until = held.fetched_at.saturating_add(self.limits.max_age.as_secs()).saturating_add(self.limits.max_stale.as_secs());
        if self.limits.max_stale.is_zero() || now >= stale_until.min(held.next_update) {
            return None;
        }
        count(&self.counters.stale);
        tracing::warn!(fetched_at = held.fetched_at, "stale collateral is used");
        Some(Arc::clone(held))
    }
}

fn digest_of(endorsements: &Endorsements) -> [u8; 32] {
    let Endorsements { collateral, certificates, revocation_lists } = endorsements;
    // Writing to memory cannot fail, and every field is text or bytes.
    let collateral = serde_json::to_vec(collateral).unwrap_or_default();
    let count = u64::try_from(certificates.len()).unwrap_or(u64::MAX).to_be_bytes();
    let mut parts = vec![collateral.as_slice(), count.as_slice()];
    parts.extend(certificates.iter().chain(revocation_lists).map(Vec::as_slice));
    sha256_of_parts(&parts)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
