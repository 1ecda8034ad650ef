//! Verified clients by content, so that one connection's calls are verified once.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use dstack_attestation::{Endorsements, VerifiedEvidence};

/// SHA-256 over everything a verification looked at that the client sent.
pub(crate) type ContentKey = [u8; 32];

/// A verdict is used at most this long, whatever the collateral allows.
const MAX_AGE_SECONDS: u64 = 600;

struct Entry {
    evidence: Arc<VerifiedEvidence>,
    /// The collateral it was verified with; another one asks for another verification.
    endorsements: Arc<Endorsements>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<ContentKey, Entry>,
    order: VecDeque<ContentKey>,
}

/// At most `capacity` verdicts; the oldest goes first. Refusals are not remembered.
pub(crate) struct EvidenceCache {
    capacity: usize,
    entries: Mutex<Entries>,
}

impl EvidenceCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    /// A verdict of the same content under the same collateral that still holds at `now`.
    pub(crate) fn find(&self, key: &ContentKey, endorsements: &Arc<Endorsements>, now: u64) -> Option<Arc<VerifiedEvidence>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.by_key.get(key).filter(|entry| Arc::ptr_eq(&entry.endorsements, endorsements))?;
        let verified_at = entry.evidence.verified_at();
        let holds = now >= verified_at && now - verified_at < MAX_AGE_SECONDS && now < entry.evidence.collateral_expires_at();
        holds.then(|| Arc::clone(&entry.evidence))
    }

    pub(crate) fn insert(&self, key: ContentKey, evidence: Arc<VerifiedEvidence>, endorsements: Arc<Endorsements>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.by_key.insert(key, Entry { evidence, endorsements }).is_none() {
            entries.order.push_back(key);
        }
        while entries.order.len() > self.capacity {
            if let Some(oldest) = entries.order.pop_front() {
                entries.by_key.remove(&oldest);
            }
        }
    }
}
