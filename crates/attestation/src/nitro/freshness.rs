//! The age of a document.

use std::time::Duration;

/// Oldest document that may open a session or release a key.
pub const MAX_DOCUMENT_AGE: Duration = Duration::from_secs(3600);
/// How far AWS's clock may be ahead of ours.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// A document from too long ago, or from the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Staleness {
    /// Made too long ago.
    #[error("the document is {age_s} s old, at most {} s are accepted", MAX_DOCUMENT_AGE.as_secs())]
    Old {
        /// Its age, in seconds.
        age_s: u64,
    },
    /// Made after our clock's time.
    #[error("the document is {ahead_s} s ahead of the clock, at most {} s are accepted", MAX_CLOCK_SKEW.as_secs())]
    FromTheFuture {
        /// The difference, in seconds.
        ahead_s: u64,
    },
}

/// Whether a document made at `issued_at` is fresh at `now`: not older than an hour, not more than five minutes ahead. Unix seconds.
///
/// # Errors
/// [`Staleness`].
pub fn check_freshness(issued_at: u64, now: u64) -> Result<(), Staleness> {
    let age_s = now.saturating_sub(issued_at);
    let ahead_s = issued_at.saturating_sub(now);
    if age_s > MAX_DOCUMENT_AGE.as_secs() {
        return Err(Staleness::Old { age_s });
    }
    if ahead_s > MAX_CLOCK_SKEW.as_secs() {
        return Err(Staleness::FromTheFuture { ahead_s });
    }
    Ok(())
}
