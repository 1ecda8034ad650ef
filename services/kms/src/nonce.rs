//! Nonces that prove how old evidence can be, without remembering any.
//!
//! ```text
//! nonce = time of issue (8 bytes, big endian, Unix seconds) || random (8) || HKDF-SHA256(key, time || random)[..16]
//! ```
//! Evidence that carries such a nonce was made after it was given out. The key is derived from the root, so replicas accept each other's.
//! A nonce may be used again while the policy thinks it young enough; what it is used with is bound to a key and to what was measured.

use std::time::Duration;

use dstack_key_hierarchy::{RootKeys, Secret, derive_key};
use rand_core::{OsRng, RngCore as _};
use subtle::ConstantTimeEq as _;

const SIGNED: usize = 16;
/// Clocks of replicas may differ by this much.
const MAX_AHEAD_SECONDS: u64 = 60;

/// A nonce on the wire.
pub(crate) type Nonce = [u8; 32];

/// Gives out nonces and knows its own.
pub(crate) struct NonceIssuer {
    key: Secret<32>,
}

impl NonceIssuer {
    pub(crate) fn new(keys: &RootKeys) -> Self {
        Self { key: keys.nonce_key() }
    }

    /// A new nonce. `now`: Unix seconds.
    pub(crate) fn issue(&self, now: u64) -> Nonce {
        let mut nonce = Nonce::default();
        let (signed, _) = nonce.split_at_mut(SIGNED);
        let (time, random) = signed.split_at_mut(8);
        time.copy_from_slice(&now.to_be_bytes());
        OsRng.fill_bytes(random);
        let tag = self.tag(signed);
        nonce.iter_mut().skip(SIGNED).zip(tag).for_each(|(byte, tag)| *byte = tag);
        nonce
    }

    /// How long ago this nonce was given out; none if it is not one of ours, or from a time to come.
    pub(crate) fn age(&self, nonce: &[u8], now: u64) -> Option<Duration> {
        let nonce: &Nonce = nonce.try_into().ok()?;
        let (signed, tag) = nonce.split_at(SIGNED);
        if !bool::from(self.tag(signed).as_slice().ct_eq(tag)) {
            return None;
        }
        let issued = u64::from_be_bytes(*signed.first_chunk()?);
        (issued <= now.saturating_add(MAX_AHEAD_SECONDS)).then(|| Duration::from_secs(now.saturating_sub(issued)))
    }

    fn tag(&self, signed: &[u8]) -> [u8; 16] {
        let mut tag = [0; 16];
        tag.iter_mut().zip(derive_key(&self.key, &[signed]).expose()).for_each(|(tag, byte)| *tag = *byte);
        tag
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_tells_its_age_to_every_holder_of_the_root() {
        let keys = RootKeys::generate(&mut OsRng);
        let nonce = NonceIssuer::new(&keys).issue(1000);
        let replica = NonceIssuer::new(&keys);

        assert_eq!(replica.age(&nonce, 1007), Some(Duration::from_secs(7)));
        assert_eq!(replica.age(&nonce, 940), Some(Duration::ZERO), "a replica's clock may be behind");
        assert_eq!(replica.age(&nonce, 939), None);
        assert_ne!(replica.issue(1000), nonce);
    }

    #[test]
    fn what_this_root_did_not_give_out_has_no_age() {
        let issuer = NonceIssuer::new(&RootKeys::generate(&mut OsRng));
        let other = NonceIssuer::new(&RootKeys::generate(&mut OsRng));
        let nonce = issuer.issue(1000);
        for place in 0..nonce.len() {
            let mut changed = nonce;
            changed[place] ^= 1;

            assert_eq!(issuer.age(&changed, 1000), None, "byte {place}");
        }
        assert_eq!(other.age(&nonce, 1000), None);
        assert_eq!(issuer.age(&nonce[..31], 1000), None);
        assert_eq!(issuer.age(&[], 1000), None);
    }
}
