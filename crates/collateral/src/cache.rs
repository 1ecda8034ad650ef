//! Collateral for many verifications.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use dstack_attestation::{Endorsements, PckIssuer, UnverifiedQuote};
use tokio::sync::Mutex;

use crate::{CollateralSource, FetchError};

/// Platform models that are kept. Quotes are unverified when this is asked, so anybody can invent models.
const MAX_PLATFORMS: usize = 64;
/// After this an answer is fetched again; if that fails, it is still used until [`MAX_AGE`].
const FRESH: Duration = Duration::from_secs(3600);
/// After this an answer is not used any more. The verifier checks the dates inside the documents as well.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

type Key = ([u8; 6], &'static str);

struct Kept {
    endorsements: Arc<Endorsements>,
    since: Instant,
}

/// Keeps collateral per platform model; clones share it.
#[derive(Clone)]
pub struct CollateralCache {
    source: CollateralSource,
    kept: Arc<Mutex<HashMap<Key, Arc<Mutex<Option<Kept>>>>>>,
}

impl CollateralCache {
    /// An empty cache in front of `source`.
    #[must_use]
    pub fn new(source: CollateralSource) -> Self {
        Self { source, kept: Arc::default() }
    }

    /// Collateral for `quote`, kept or fetched. Several askers for one platform share one fetch.
    ///
    /// Errors: nothing is kept and the fetch failed.
    pub async fn endorsements(&self, quote: &UnverifiedQuote) -> Result<Arc<Endorsements>, FetchError> {
        self.platform(quote.fmspc()?, quote.pck_issuer()?).await
    }

    /// Collateral for a platform model, kept or fetched.
    ///
    /// Errors: nothing is kept and the fetch failed.
    pub async fn platform(&self, fmspc: [u8; 6], issuer: PckIssuer) -> Result<Arc<Endorsements>, FetchError> {
        let slot = self.slot((fmspc, issuer.as_str())).await;
        let mut slot = slot.lock().await;
        let age = slot.as_ref().map(|kept| kept.since.elapsed());
        if let Some(kept) = slot.as_ref()
            && age.is_some_and(|age| age < FRESH)
        {
            return Ok(Arc::clone(&kept.endorsements));
        }
        match self.source.fetch_platform(fmspc, issuer).await {
            Ok(endorsements) => {
                let endorsements = Arc::new(endorsements);
                *slot = Some(Kept { endorsements: Arc::clone(&endorsements), since: Instant::now() });
                Ok(endorsements)
            }
            Err(error) => match slot.as_ref() {
                Some(kept) if age.is_some_and(|age| age < MAX_AGE) => {
                    tracing::warn!(%error, "collateral not renewed, the kept one is used");
                    Ok(Arc::clone(&kept.endorsements))
                }
                _ => Err(error),
            },
        }
    }

    async fn slot(&self, key: Key) -> Arc<Mutex<Option<Kept>>> {
        let mut kept = self.kept.lock().await;
        if kept.len() >= MAX_PLATFORMS && !kept.contains_key(&key) {
            // Those that a fetch never filled go first; of real platforms there are few.
            kept.retain(|_, slot| slot.try_lock().map_or(true, |slot| slot.is_some()));
            if kept.len() >= MAX_PLATFORMS {
                kept.clear();
            }
        }
        Arc::clone(kept.entry(key).or_default())
    }
}
