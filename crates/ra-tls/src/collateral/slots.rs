//! One place per platform, at most so many; the one unused for longest goes first.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use super::{FetchError, cache::Held};

/// What is known about one platform's papers. Whoever holds the lock fetches; the others wait for the result.
pub(super) type Slot = Arc<tokio::sync::Mutex<Contents>>;

#[derive(Default)]
pub(super) struct Contents {
    /// The last that arrived.
    pub(super) held: Option<Arc<Held>>,
    /// The last fetch, if it failed, and when (Unix seconds).
    pub(super) failure: Option<(u64, FetchError)>,
}

struct Place {
    slot: Slot,
    used: u64,
}

struct Places<K> {
    by_platform: HashMap<K, Place>,
    uses: u64,
}

pub(super) struct Slots<K> {
    capacity: usize,
    places: Mutex<Places<K>>,
}

impl<K: Copy + Eq + Hash> Slots<K> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), places: Mutex::new(Places { by_platform: HashMap::new(), uses: 0 }) }
    }

    /// The slot of `platform`. Where the cache is full, the place that was unused for longest and that nobody waits for is given up.
    pub(super) fn slot(&self, platform: K) -> Result<Slot, FetchError> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.uses += 1;
        let used = places.uses;
        if let Some(place) = places.by_platform.get_mut(&platform) {
            place.used = used;
            return Ok(Arc::clone(&place.slot));
        }
        if places.by_platform.len() >= self.capacity {
            let idle = places.by_platform.iter().filter(|(_, place)| Arc::strong_count(&place.slot) == 1);
            let oldest = idle.min_by_key(|(_, place)| place.used).map(|(platform, _)| *platform);
            let oldest = oldest.ok_or(FetchError::Busy { platforms: places.by_platform.len() })?;
            places.by_platform.remove(&oldest);
        }
        let slot = Slot::default();
        places.by_platform.insert(platform, Place { slot: Arc::clone(&slot), used });
        Ok(slot)
    }

    /// The slot of `platform`, if there is one; does not count as a use.
    pub(super) fn peek(&self, platform: K) -> Option<Slot> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.by_platform.get(&platform).map(|place| Arc::clone(&place.slot))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn the_place_unused_for_longest_goes_and_the_others_stay() {
        let slots = Slots::<u8>::new(2);
        let first = Arc::downgrade(&slots.slot(1).unwrap());
        let second = Arc::downgrade(&slots.slot(2).unwrap());
        slots.slot(1).unwrap();

        slots.slot(3).unwrap();

        assert!(first.upgrade().is_some() && second.upgrade().is_none());
        assert!(slots.peek(3).is_some());
    }

    #[test]
    fn places_somebody_waits_for_are_kept() {
        let slots = Slots::<u8>::new(1);
        let waited_for = slots.slot(1).unwrap();

        assert!(matches!(slots.slot(2), Err(FetchError::Busy { platforms: 1 })));
        drop(waited_for);
        assert!(slots.slot(2).is_ok());
    }
}
