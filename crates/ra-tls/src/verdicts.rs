//! Verdicts by content, so that the same evidence is verified once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use dstack_attestation::{VerifiedEvidence, sha256_of_parts};

use crate::collateral::PapersOf;

/// SHA-256 over everything a verification looks at that came from the peer.
///
/// The collateral is in the [`Verdict`]. Anchors and policy are not in it: a cache belongs to one verifier, whose anchors and policy never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ContentKey([u8; 32]);

impl ContentKey {
    /// `parts`: each counts with its length, so that no two lists collide.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        Self(sha256_of_parts(parts))
    }
}

/// Evidence that held, and what it was judged with.
#[derive(Clone)]
pub(crate) struct Verdict {
    pub(crate) evidence: Arc<VerifiedEvidence>,
    /// What its papers are published for; `None` where the evidence brought all of them along.
    pub(crate) papers_of: Option<PapersOf>,
    /// SHA-256 of the papers' content. The verdict says nothing under others.
    pub(crate) papers: [u8; 32],
}

struct Entry {
    verdict: Verdict,
    /// Unix seconds; not used from then on.
    use_until: u64,
    used: u64,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<ContentKey, Entry>,
    uses: u64,
}

/// At most `capacity` verdicts; the one unused for longest goes first. Refusals are not remembered.
pub(crate) struct VerdictCache {
    capacity: usize,
    max_age: u64,
    entries: Mutex<Entries>,
}

impl VerdictCache {
    /// `max_age`: seconds after the verification at which a verdict ends, if nothing else ends it before.
    pub(crate) fn new(capacity: usize, max_age: u64) -> Self {
        Self { capacity, max_age, entries: Mutex::default() }
    }

    /// The verdict of the same content, if it still holds at `now`. The caller compares the collateral.
    pub(crate) fn find(&self, key: &ContentKey, now: u64) -> Option<Verdict> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let used = entries.uses;
        let entry = entries.by_key.get_mut(key)?;
        if now >= entry.use_until || now < entry.verdict.evidence.verified_at() {
            entries.by_key.remove(key);
            return None;
        }
        entry.used = used;
        Some(entry.verdict.clone())
    }

    /// Remembers a verdict until its collateral or the certificate it came in (`not_after`, Unix seconds) ends.
    pub(crate) fn insert(&self, key: ContentKey, verdict: Verdict, not_after: Option<u64>) {
        let evidence = &verdict.evidence;
        let use_until = evidence
            .verified_at()
            .saturating_add(self.max_age)
            .min(evidence.collateral_expires_at())
            .min(not_after.map_or(u64::MAX, |last| last.saturating_add(1)));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.uses += 1;
        let used = entries.uses;
        if self.capacity == 0 {
            return;
        }
        while entries.by_key.len() >= self.capacity && !entries.by_key.contains_key(&key) {
            let oldest = entries.by_key.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { return };
            entries.by_key.remove(&oldest);
        }
        entries.by_key.insert(key, Entry { verdict, use_until, used });
    }
}
