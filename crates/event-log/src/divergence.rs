//! Reports that say where a log and its reference part.

use crate::{Digest384, Registers, event::Event, registers::extend};

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
    /// Name of the event in the log, if it has one there.
    pub event: Option<String>,
    /// Digest in the log; `None` if the log ends before.
    pub found: Option<Digest384>,
    /// Digest in the reference; `None` if the reference ends before.
    pub expected: Option<Digest384>,
}

impl Divergence {
    pub(crate) fn find(log: &[Event], reference: &[Event], registers: std::ops::Range<u32>) -> Option<Self> {
        registers.into_iter().find_map(|register| Self::find_in(log, reference, register))
    }

    fn find_in(log: &[Event], reference: &[Event], register: u32) -> Option<Self> {
        let mut found = log.iter().filter(|event| event.imr == register);
        let mut expected = reference.iter().filter(|event| event.imr == register);
        for position in 0.. {
            let (found, expected) = (found.next(), expected.next());
            if found.is_none() && expected.is_none() {
                break;
            }
            let digests = (digest(found, position), digest(expected, position));
            if digests.0.is_none() || digests.0 != digests.1 {
                let event = found.or(expected).map(|event| event.event.clone());
                return Some(Self { register, position, event, found: digests.0, expected: digests.1 });
            }
        }
        None
    }
}

fn digest(event: Option<&Event>, index: usize) -> Option<Digest384> {
    event.and_then(|event| event.checked_digest(index).ok())
}
