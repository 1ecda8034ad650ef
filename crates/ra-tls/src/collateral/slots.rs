//! One place per platform model, at most so many; the one unused for longest goes first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{FetchError, Platform, client::Held};

/// What is known about one platform's collateral. Whoever holds the lock fetches; the others wait for the result.
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

#[derive(Default)]
struct Places {
    by_platform: HashMap<Platform, Place>,
    uses: u64,
}

pub(super) struct Slots {
    capacity: usize,
    places: Mutex<Places>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), places: Mutex::default() }
    }

    /// The slot of `platform`. Where the cache is full, the place that was unused for longest and that nobody waits for is given up.
    pub(super) fn slot(&self, platform: Platform) -> Result<Slot, FetchError> {
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
    pub(super) fn peek(&self, platform: Platform) -> Option<Slot> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.by_platform.get(&platform).map(|place| Arc::clone(&place.slot))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use dstack_attestation::PckIssuer;

    use super::*;

    fn platform(number: u8) -> Platform {
        Platform::known([number; 6], PckIssuer::Platform)
    }

    #[test]
    fn the_place_unused_for_longest_goes_and_the_others_stay() {
        let slots = Slots::new(2);
        let first = Arc::downgrade(&slots.slot(platform(1)).unwrap());
        let second = Arc::downgrade(&slots.slot(platform(2)).unwrap());
        slots.slot(platform(1)).unwrap();

        slots.slot(platform(3)).unwrap();

        assert!(first.upgrade().is_some() && second.upgrade().is_none());
        assert!(slots.peek(platform(3)).is_some());
    }

    #[test]
    fn places_somebody_waits_for_are_kept() {
        let slots = Slots::new(1);
        let waited_for = slots.slot(platform(1)).unwrap();

        assert!(matches!(slots.slot(platform(2)), Err(FetchError::Busy { platforms: 1 })));
        drop(waited_for);
        assert!(slots.slot(platform(2)).is_ok());
    }
}
