//! Reports that say where a log and its reference part.

use std::fmt;

use crate::{Digest384, Registers, describe::describe, event::Event, registers::extend};

/// A replayed register that differs from the quoted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replay of RTMR{register} gives {}, the quote has {}{}", hex::encode(replayed), hex::encode(quoted), agreement(*agrees_after))]
pub struct RegisterMismatch {
    /// First register that differs, 0 to 3.
    pub register: usize,
    /// Value the log gives.
    pub replayed: Digest384,
    /// Value in the quote.
    pub quoted: Digest384,
    /// The quoted value is the one after this many of the register's events: the log has entries that were never measured.
    pub agrees_after: Option<usize>,
}

fn agreement(after: Option<usize>) -> String {
    after.map_or_else(String::new, |count| format!(" (reached after {count} of its events; the rest was not measured)"))
}

impl RegisterMismatch {
    pub(crate) fn find(events: &[Event], replayed: &Registers, quoted: &Registers) -> Option<Self> {
        let (register, (replayed, quoted)) =
            replayed.0.iter().zip(&quoted.0).enumerate().find(|(_, (replayed, quoted))| replayed != quoted)?;
        Some(Self { register, replayed: *replayed, quoted: *quoted, agrees_after: prefix_with(events, register, quoted) })
    }
}

fn prefix_with(events: &[Event], register: usize, quoted: &Digest384) -> Option<usize> {
    let mut value = [0; 48];
    if value == *quoted {
        return Some(0);
    }
    let of_register = events.iter().enumerate().filter(|(_, event)| usize::try_from(event.imr) == Ok(register));
    for (count, (index, event)) in of_register.enumerate() {
        value = extend(&value, &event.checked_digest(index).ok()?);
        if value == *quoted {
            return Some(count + 1);
        }
    }
    None
}

/// First event at which a log and a reference log part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Register, 0 to 3.
    pub register: u32,
    /// Position among the register's events, from 0.
    pub position: usize,
    /// What the log has there; `None` if it ends before.
    pub found: Option<DivergentEvent>,
    /// What the reference has there; `None` if it ends before.
    pub expected: Option<DivergentEvent>,
}

/// One side of a [`Divergence`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DivergentEvent {
    /// Position in the whole log.
    pub index: usize,
    /// The event in words, see [`describe`].
    pub description: String,
    /// What the register is extended with; `None` if the entry itself is not consistent.
    pub digest: Option<Digest384>,
}

impl Divergence {
    pub(crate) fn find(log: &[Event], reference: &[Event], registers: std::ops::Range<u32>) -> Option<Self> {
        registers.into_iter().find_map(|register| Self::find_in(log, reference, register))
    }

    fn find_in(log: &[Event], reference: &[Event], register: u32) -> Option<Self> {
        let of_register = |events: &[Event]| -> Vec<usize> {
            events.iter().enumerate().filter(|(_, event)| event.imr == register).map(|(index, _)| index).collect()
        };
        let (found, expected) = (of_register(log), of_register(reference));
        (0..found.len().max(expected.len())).find_map(|position| {
            let sides = (found.get(position), expected.get(position));
            let digests = (digest(log, sides.0), digest(reference, sides.1));
            let agree = digests.0.is_some() && digests.0 == digests.1;
            (!agree).then(|| Self { register, position, found: side(log, sides.0), expected: side(reference, sides.1) })
        })
    }
}

fn digest(events: &[Event], index: Option<&usize>) -> Option<Digest384> {
    index.and_then(|index| events.get(*index)?.checked_digest(*index).ok())
}

fn side(events: &[Event], index: Option<&usize>) -> Option<DivergentEvent> {
    index.map(|index| DivergentEvent {
        index: *index,
        description: describe(events, *index).unwrap_or_default(),
        digest: digest(events, Some(index)),
    })
}

impl fmt::Display for DivergentEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.map_or_else(|| "no consistent digest".to_owned(), hex::encode);
        write!(f, "{} with {digest}", self.description)
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RTMR{} parts at its event {}", self.register, self.position)?;
        match (&self.found, &self.expected) {
            (Some(found), Some(expected)) => write!(f, " (entry {} of the log): expected {expected}, got {found}", found.index),
            (Some(found), None) => write!(f, " (entry {} of the log): nothing more expected, got {found}", found.index),
            (None, Some(expected)) => write!(f, ": expected {expected}, but the log ends"),
            (None, None) => Ok(()),
        }
    }
}
