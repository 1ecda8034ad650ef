//! The client of AMD's key distribution service.

use std::sync::{Arc, Mutex, PoisonError};

use dstack_attestation::{
    Endorsements,
    sev_snp::{ChipKeyName, UnverifiedReport},
};
use dstack_rpc::{Client, Endpoint};

use super::{
    CollateralCounters, CollateralLimits, FetchError, Service,
    cache::{Cache, Held},
    client::CALL_TIMEOUT,
    kds,
};

/// Most bytes of one answer; the longest is a revocation list.
const ANSWER_LIMIT: usize = 1 << 20;
/// Fetches in a minute of the clock. A report of a made-up chip looks like a genuine one until the certificate of its key is here, so
/// strangers could have the service asked about chips without end.
const MAX_PER_MINUTE: u32 = 60;

/// Client of AMD's key distribution service (KDS), or of a cache in front of it. Clones share the cache.
#[derive(Clone)]
pub struct ChipKeyClient {
    client: Client,
    base: String,
    cache: Cache<ChipKeyName>,
    pace: Arc<Mutex<Pace>>,
}

/// Fetches in the minute that runs.
#[derive(Default)]
struct Pace {
    minute: u64,
    fetches: u32,
}

impl std::fmt::Debug for ChipKeyClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChipKeyClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl ChipKeyClient {
    /// AMD's own service.
    pub const AMD: &str = "https://kdsintf.amd.com";

    /// A client of the service at `url`, with or without `/vcek/v1` at its end. `https` needs [`ChipKeyClient::with_tls`].
    pub fn new(url: &str) -> Result<Self, FetchError> {
        let trimmed = url.trim_end_matches('/').trim_end_matches("/vcek/v1");
        let endpoint = Endpoint::parse(trimmed).map_err(|error| FetchError::address(Service::Kds, error))?;
        let base = endpoint.base().to_owned();
        let client = Client::new(endpoint).with_timeout(CALL_TIMEOUT).with_answer_limit(ANSWER_LIMIT);
        Ok(Self { client, base, cache: Cache::new(), pace: Arc::default() })
    }

    /// Whom to trust on `https`. What comes is signed, so this protects only against being kept from it.
    #[must_use]
    pub fn with_tls(mut self, config: impl Into<Arc<rustls::ClientConfig>>) -> Self {
        self.client = self.client.with_tls(config);
        self
    }

    /// Other limits. The cache starts empty.
    #[must_use]
    pub fn with_limits(mut self, limits: CollateralLimits) -> Self {
        self.cache = self.cache.with_limits(limits);
        self
    }

    /// Another clock, Unix seconds; for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.cache = self.cache.with_clock(Arc::new(clock));
        self
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> CollateralCounters {
        self.cache.counters()
    }

    /// The certificate of the key that signed `report` (unverified), its issuers, and the revocation list over them; from the cache while
    /// they are fresh. One fetch at a time per chip.
    ///
    /// Errors: [`FetchError::ChipKey`] without any request where the report does not say whom to ask for.
    pub async fn endorsements(&self, report: &[u8]) -> Result<Arc<Endorsements>, FetchError> {
        self.endorsements_for(ChipKeyName::of_report(&UnverifiedReport::parse(report)?)?).await
    }

    /// The same for a key that the caller knows.
    pub async fn endorsements_for(&self, name: ChipKeyName) -> Result<Arc<Endorsements>, FetchError> {
        Ok(Arc::clone(&self.held(name).await?.endorsements))
    }

    /// What is fresh in the cache, without waiting and without any request.
    pub(crate) fn at_hand(&self, name: ChipKeyName) -> Option<Arc<Held>> {
        self.cache.at_hand(name)
    }

    pub(crate) async fn held(&self, name: ChipKeyName) -> Result<Arc<Held>, FetchError> {
        let fetch = async {
            self.keep_pace()?;
            kds::fetch(&self.client, &self.base, name).await
        };
        self.cache.held(name, fetch).await
    }

    fn keep_pace(&self) -> Result<(), FetchError> {
        let minute = self.cache.now() / 60;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.minute != minute {
            *pace = Pace { minute, fetches: 0 };
        }
        if pace.fetches >= MAX_PER_MINUTE {
            return Err(FetchError::Paced { per_minute: MAX_PER_MINUTE });
        }
        pace.fetches += 1;
        Ok(())
    }
}
