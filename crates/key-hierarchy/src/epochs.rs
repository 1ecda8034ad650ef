//! Seeds of the separated scheme and when each of them counts. Source: SPEC.md §8.

use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::{P256Key, Secret, kdf::derive_key};

const MAGIC: &[u8; 8] = b"DSTKEPO1";
const ENTRY_BYTES: usize = 4 + 8 + 8 + 32;
/// Most epochs that are kept.
pub const MAX_EPOCHS: usize = 64;
/// Stands for "no end".
const NO_END: u64 = 0;

/// One epoch.
#[derive(Debug, PartialEq, Eq)]
pub struct Epoch {
    /// From 1.
    pub number: u32,
    /// What its keys are derived from.
    pub seed: Secret<32>,
    /// First second in which new data is protected with it; Unix seconds.
    pub active_from: u64,
    /// First second in which it is no longer handed out; none for the newest.
    pub readable_until: Option<u64>,
}

/// Why the epochs cannot be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EpochError {
    /// Not the stored form.
    #[error("bytes are not a list of epochs")]
    Malformed,
    /// A rotation is under way.
    #[error("epoch {number} waits for its start at {active_from} (Unix seconds)")]
    Pending {
        /// Its number.
        number: u32,
        /// When it starts.
        active_from: u64,
    },
    /// Too many.
    #[error("{MAX_EPOCHS} epochs are kept, no more fit")]
    Full,
    /// A time beyond what can be counted.
    #[error("the epoch's times do not fit")]
    Times,
    /// Two systems made different epochs of one number.
    #[error("epoch {number} of the other system has another seed")]
    Fork {
        /// The number.
        number: u32,
    },
}

/// The epochs of a KMS, oldest first; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Epochs(Vec<Epoch>);

impl Epochs {
    /// Epoch 1 alone. Its seed comes from the root, so that replicas which never spoke of epochs agree; later seeds are random.
    #[must_use]
    pub fn first(root: &P256Key) -> Self {
        let seed = derive_key(&root.scalar(), &[b"dstack-separated-keys first epoch"]);
        Self(vec![Epoch { number: 1, seed, active_from: 0, readable_until: None }])
    }

    /// All, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Epoch] {
        &self.0
    }

    /// The epoch that new data is protected with at `now`. A clock before the oldest epoch gives the oldest.
    #[must_use]
    pub fn current(&self, now: u64) -> Option<&Epoch> {
        self.0.iter().rev().find(|epoch| epoch.active_from <= now).or_else(|| self.0.first())
    }

    /// Epochs that are handed out at `now`, oldest first: those not at their end, and always the current one.
    pub fn readable(&self, now: u64) -> impl Iterator<Item = &Epoch> {
        let current = self.current(now).map(|epoch| epoch.number);
        self.0.iter().filter(move |epoch| epoch.readable_until.is_none_or(|end| now < end) || Some(epoch.number) == current)
    }

    /// Adds an epoch that starts `activate_in` seconds from `now`; the one before stays readable for `readable_for` seconds after that.
    ///
    /// Errors: an earlier rotation has not started, or there is no room.
    pub fn rotate(&mut self, rng: &mut impl CryptoRngCore, now: u64, activate_in: u64, readable_for: u64) -> Result<u32, EpochError> {
        let count = self.0.len();
        let last = self.0.last_mut().ok_or(EpochError::Malformed)?;
        if last.active_from > now {
            return Err(EpochError::Pending { number: last.number, active_from: last.active_from });
        }
        let active_from = now.checked_add(activate_in).ok_or(EpochError::Times)?;
        let readable_until = active_from.checked_add(readable_for).filter(|end| *end != NO_END).ok_or(EpochError::Times)?;
        let number = last.number.checked_add(1).ok_or(EpochError::Full)?;
        if count >= MAX_EPOCHS {
            return Err(EpochError::Full);
        }
        last.readable_until = Some(readable_until);
        self.0.push(Epoch { number, seed: Secret::generate(rng), active_from, readable_until: None });
        Ok(number)
    }

    /// Takes over epochs and times of another system of the same root. Whether anything changed.
    ///
    /// Errors: both made an epoch of one number; nothing is changed then.
    pub fn merge(&mut self, other: Self) -> Result<bool, EpochError> {
        for theirs in &other.0 {
            if self.0.iter().any(|ours| ours.number == theirs.number && ours.seed != theirs.seed) {
                return Err(EpochError::Fork { number: theirs.number });
            }
        }
        let mut is_changed = false;
        for theirs in other.0 {
            match self.0.iter_mut().find(|ours| ours.number == theirs.number) {
                Some(ours) if ours.readable_until.is_none() && theirs.readable_until.is_some() => {
                    ours.readable_until = theirs.readable_until;
                    is_changed = true;
                }
                Some(_) => {}
                None => {
                    self.0.push(theirs);
                    is_changed = true;
                }
            }
        }
        self.0.sort_by_key(|epoch| epoch.number);
        Ok(is_changed)
    }

    /// The stored form. Secret.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAGIC.len() + self.0.len() * ENTRY_BYTES));
        bytes.extend_from_slice(MAGIC);
        for epoch in &self.0 {
            bytes.extend_from_slice(&epoch.number.to_be_bytes());
            bytes.extend_from_slice(&epoch.active_from.to_be_bytes());
            bytes.extend_from_slice(&epoch.readable_until.unwrap_or(NO_END).to_be_bytes());
            bytes.extend_from_slice(epoch.seed.expose());
        }
        bytes
    }

    /// Reads the stored form.
    ///
    /// Errors: anything else, no epoch, too many, or numbers that do not rise.
    pub fn decode(bytes: &[u8]) -> Result<Self, EpochError> {
        let entries = bytes.strip_prefix(MAGIC.as_slice()).ok_or(EpochError::Malformed)?;
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() || entries.is_empty() || entries.len() > MAX_EPOCHS {
            return Err(EpochError::Malformed);
        }
        let epochs: Option<Vec<Epoch>> = entries.iter().map(decode_entry).collect();
        let epochs = epochs.ok_or(EpochError::Malformed)?;
        let rises = epochs.iter().zip(epochs.iter().skip(1)).all(|(a, b)| a.number < b.number);
        if rises { Ok(Self(epochs)) } else { Err(EpochError::Malformed) }
    }
}

fn decode_entry(entry: &[u8; ENTRY_BYTES]) -> Option<Epoch> {
    let (number, rest) = entry.split_first_chunk::<4>()?;
    let (active_from, rest) = rest.split_first_chunk::<8>()?;
    let (readable_until, seed) = rest.split_first_chunk::<8>()?;
    Some(Epoch {
        number: u32::from_be_bytes(*number),
        seed: Secret::from_slice(seed).ok()?,
        active_from: u64::from_be_bytes(*active_from),
        readable_until: Some(u64::from_be_bytes(*readable_until)).filter(|end| *end != NO_END),
    })
}

#[cfg(test)]
mod tests;
