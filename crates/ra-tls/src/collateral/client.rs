//! The client of Intel's collateral.

use std::{sync::Arc, time::Duration};

use dstack_attestation::{Endorsements, QuoteError, TrustAnchors, UnverifiedQuote, UnverifiedSgxQuote};
use dstack_rpc::{Client, Endpoint};

use super::{
    CollateralCounters, CollateralLimits, FetchError, Platform, Service,
    cache::{Cache, Held},
    pcs,
};

pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: usize = 4 << 20;

/// Client of one collateral service. Clones share the cache.
#[derive(Clone)]
pub struct CollateralClient {
    client: Client,
    base: String,
    anchors: TrustAnchors,
    cache: Cache<Platform>,
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
        let endpoint = Endpoint::parse(trimmed).map_err(|error| FetchError::address(Service::Pcs, error))?;
        let base = endpoint.base().to_owned();
        let client = Client::new(endpoint).with_timeout(CALL_TIMEOUT).with_answer_limit(ANSWER_LIMIT);
        Ok(Self { client, base, anchors: TrustAnchors::hardware(), cache: Cache::new() })
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

    /// Endorsements for the platform of `quote` (TDX or SGX), from the cache while they are fresh. One fetch at a time per platform.
    ///
    /// Errors: [`FetchError::Platform`] without any request where the quote's certificate chain does not end in a trusted root.
    pub async fn endorsements(&self, quote: &[u8]) -> Result<Arc<Endorsements>, FetchError> {
        self.endorsements_for(self.platform(quote)?).await
    }

    /// Endorsements for a platform model that the caller knows.
    pub async fn endorsements_for(&self, platform: Platform) -> Result<Arc<Endorsements>, FetchError> {
        Ok(Arc::clone(&self.held(platform).await?.endorsements))
    }

    /// The platform of `quote` (TDX or SGX), under the roots of this client, at its clock.
    pub fn platform(&self, quote: &[u8]) -> Result<Platform, FetchError> {
        let now = self.cache.now();
        match UnverifiedQuote::parse(quote) {
            Ok(quote) => Ok(Platform::of_quote(&quote, &self.anchors, now)?),
            Err(QuoteError::OtherKind { tee_type: 0, .. }) => {
                Ok(Platform::of_sgx_quote(&UnverifiedSgxQuote::parse(quote)?, &self.anchors, now)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What is fresh in the cache, without waiting and without any request.
    pub(crate) fn at_hand(&self, platform: Platform) -> Option<Arc<Held>> {
        self.cache.at_hand(platform)
    }

    pub(crate) async fn held(&self, platform: Platform) -> Result<Arc<Held>, FetchError> {
        self.cache.held(platform, pcs::fetch(&self.client, &self.base, platform)).await
    }
}
