//! The client and its rules of freshness.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dstack_attestation::{Endorsements, PckIssuer, QuoteCollateral, TrustAnchors, UnverifiedQuote};
use dstack_rpc::{Client, Endpoint};
use sha2::{Digest as _, Sha256};

use super::{
    FetchError, Platform,
    pcs::{self, next_update},
    slots::{Contents, Slots},
};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: usize = 4 << 20;
/// Least time between two fetches for one platform: neither expired collateral nor a failing service becomes a flood.
const MIN_INTERVAL: u64 = 10;

/// How long collateral is kept, and of how many platform models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollateralLimits {
    /// Asked for again after this time, however long the vendor allows.
    pub max_age: Duration,
    /// How long after that what is at hand is still used while the service does not answer. Never past the vendor's own date: the
    /// verification refuses expired collateral wherever it comes from.
    pub max_stale: Duration,
    /// Platform models remembered.
    pub platforms: usize,
}

impl Default for CollateralLimits {
    /// A day, nothing stale, 256 platform models.
    fn default() -> Self {
        Self { max_age: Duration::from_secs(24 * 3600), max_stale: Duration::ZERO, platforms: 256 }
    }
}

/// Collateral at hand.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) endorsements: Arc<Endorsements>,
    /// SHA-256 of its content.
    pub(crate) digest: [u8; 32],
    fetched_at: u64,
    next_update: u64,
}

impl Held {
    /// For evidence that brings its papers along: there is no collateral, and it does not end.
    pub(crate) fn nothing() -> Self {
        Self { endorsements: Arc::default(), digest: [0; 32], fetched_at: 0, next_update: u64::MAX }
    }
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

/// Client of one collateral service. Clones share the cache.
#[derive(Clone)]
pub struct CollateralClient {
    client: Client,
    base: String,
    anchors: TrustAnchors,
    limits: CollateralLimits,
    slots: Arc<Slots>,
    counters: Arc<Counters>,
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for CollateralClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollateralClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl CollateralClient {
    /// A client of the service at `url`, with or without `/sgx/certification/v4` at its end. `https` needs [`CollateralClient::with_tls`].
    ///
    /// It believes in the hardware vendors' roots.
    pub fn new(url: &str) -> Result<Self, FetchError> {
        let trimmed = url.trim_end_matches('/').trim_end_matches("/sgx/certification/v4").trim_end_matches("/tdx/certification/v4");
        let endpoint = Endpoint::parse(trimmed).map_err(|error| FetchError::Address(error.into()))?;
        let base = endpoint.base().to_owned();
        let client = Client::new(endpoint).with_timeout(CALL_TIMEOUT).with_answer_limit(ANSWER_LIMIT);
        let limits = CollateralLimits::default();
        let slots = Arc::new(Slots::new(limits.platforms));
        Ok(Self { client, base, anchors: TrustAnchors::hardware(), limits, slots, counters: Arc::default(), clock: Arc::new(unix_now) })
    }

    /// Whom to trust on `https`. Collateral is signed, so this protects only against being kept from fresh collateral.
    #[must_use]
    pub fn with_tls(mut self, config: impl Into<Arc<rustls::ClientConfig>>) -> Self {
        self.client = self.client.with_tls(config);
        self
    }

    /// Roots under which a quote's platform must be for anything to be fetched.
    #[must_use]
    pub fn with_anchors(mut self, anchors: TrustAnchors) -> Self {
        self.anchors = anchors;
        self
    }

    /// Other limits. The cache starts empty.
    #[must_use]
    pub fn with_limits(mut self, limits: CollateralLimits) -> Self {
        self.slots = Arc::new(Slots::new(limits.platforms));
        self.limits = limits;
        self
    }

    /// Another clock, Unix seconds; for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> CollateralCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { hits, fetches, failures, stale } = &*self.counters;
        CollateralCounters { hits: read(hits), fetches: read(fetches), failures: read(failures), stale: read(stale) }
    }

    /// Endorsements for the platform of `quote`, from the cache while they are fresh. One fetch at a time per platform.
    ///
    /// Errors: [`FetchError::Platform`] without any request where the quote's certificate chain does not end in a trusted root.
    pub async fn endorsements(&self, quote: &[u8]) -> Result<Arc<Endorsements>, FetchError> {
        Ok(Arc::clone(&self.held(self.platform(quote)?).await?.endorsements))
    }

    /// Endorsements for a platform model that the caller knows.
    pub async fn endorsements_for(&self, fmspc: [u8; 6], issuer: PckIssuer) -> Result<Arc<Endorsements>, FetchError> {
        Ok(Arc::clone(&self.held(Platform::known(fmspc, issuer)).await?.endorsements))
    }

    /// The platform of `quote`, under the roots of this client, at its clock.
    pub fn platform(&self, quote: &[u8]) -> Result<Platform, FetchError> {
        Ok(Platform::of_quote(&UnverifiedQuote::parse(quote)?, &self.anchors, (self.clock)())?)
    }

    /// What is fresh in the cache, without waiting and without any request.
    pub(crate) fn at_hand(&self, platform: Platform) -> Option<Arc<Held>> {
        let slot = self.slots.peek(platform)?;
        let contents = slot.try_lock().ok()?;
        self.fresh(&contents, (self.clock)())
    }

    pub(crate) async fn held(&self, platform: Platform) -> Result<Arc<Held>, FetchError> {
        let slot = self.slots.slot(platform)?;
        let mut contents = slot.lock().await;
        let now = (self.clock)();
        if let Some(held) = self.fresh(&contents, now) {
            count(&self.counters.hits);
            return Ok(held);
        }
        let recent = |at: u64| now >= at && now - at < MIN_INTERVAL;
        let failure = match contents.failure.take().filter(|(at, _)| recent(*at)) {
            Some(failure) => failure,
            None => match pcs::fetch(&self.client, &self.base, platform).await {
                Ok(collateral) => return Ok(self.keep(&mut contents, platform, collateral, now)),
                Err(error) => {
                    count(&self.counters.failures);
                    tracing::warn!(fmspc = hex::encode(platform.fmspc()), %error, "collateral cannot be fetched");
                    (now, error)
                }
            },
        };
        let error = failure.1.clone();
        contents.failure = Some(failure);
        self.stale(&contents, now).ok_or(error)
    }

    fn keep(&self, contents: &mut Contents, platform: Platform, collateral: QuoteCollateral, now: u64) -> Arc<Held> {
        count(&self.counters.fetches);
        tracing::info!(fmspc = hex::encode(platform.fmspc()), issuer = platform.issuer().as_str(), "collateral fetched");
        let held = Arc::new(Held {
            digest: digest_of(&collateral),
            // Without a date it is asked for again as soon as the interval allows.
            next_update: next_update(&collateral).unwrap_or(now),
            endorsements: Arc::new(Endorsements::from(collateral)),
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

fn digest_of(collateral: &QuoteCollateral) -> [u8; 32] {
    // Writing to memory cannot fail, and every field is text or bytes.
    Sha256::digest(serde_json::to_vec(collateral).unwrap_or_default()).into()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
