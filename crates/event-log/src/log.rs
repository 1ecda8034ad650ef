//! A log whose digests are consistent.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use crate::{
    BootLog, BootLogError, Digest384, Registers,
    describe::describe,
    divergence::{Divergence, RegisterMismatch},
    event::Event,
    registers::replay,
    runtime::{RuntimeEvent, names},
};

/// Largest JSON text that is parsed.
pub const MAX_LOG_BYTES: usize = 8 << 20;
/// Most entries a log may have.
pub const MAX_EVENTS: usize = 16_384;
/// Characters of a parser's complaint that are kept.
const LONGEST_PROBLEM: usize = 200;

/// Why a log is refused. The log's supplier is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventLogError {
    /// The text is too long.
    #[error("event log of {got} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes given.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Too many entries.
    #[error("event log of {got} entries exceeds the limit of {MAX_EVENTS}")]
    TooManyEvents {
        /// Entries given.
        got: usize,
    },
    /// Not the JSON form.
    #[error("event log is not JSON of the expected form at line {line} column {column}: {problem}")]
    Json {
        /// What is wrong there.
        problem: String,
        /// Line of the text.
        line: usize,
        /// Column of the line.
        column: usize,
    },
    /// A digest that is not 48 bytes, and not an empty one of a runtime event.
    #[error("digest of event {index} has {got} bytes, expected 48")]
    DigestLength {
        /// Position in the log.
        index: usize,
        /// Bytes found.
        got: usize,
    },
    /// Name and payload do not hash to the recorded digest.
    #[error("runtime event {index} ({name:?}) does not hash to its recorded digest")]
    PayloadMismatch {
        /// Position in the log.
        index: usize,
        /// The event's name.
        name: String,
    },
    /// Only RTMR0 to RTMR3 exist.
    #[error("event {index} names register {imr}, which does not exist")]
    NoSuchRegister {
        /// Position in the log.
        index: usize,
        /// Register named.
        imr: u32,
    },
    /// The binary log of the firmware.
    #[error(transparent)]
    BootLog(#[from] BootLogError),
}

/// Parses the JSON array of either dialect without looking at digests. Memory is bounded before anything is kept.
pub fn parse_events(text: &str) -> Result<Vec<Event>, EventLogError> {
    if text.len() > MAX_LOG_BYTES {
        return Err(EventLogError::TooLong { got: text.len(), limit: MAX_LOG_BYTES });
    }
    let list: BoundedList = serde_json::from_str(text).map_err(|error| json_error(&error))?;
    match list.beyond {
        0 => Ok(list.events),
        beyond => Err(EventLogError::TooManyEvents { got: MAX_EVENTS + beyond }),
    }
}

/// For `#[serde(deserialize_with)]` of a field that holds a log: [`parse_events`] inside another document.
pub fn deserialize_events<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Event>, D::Error> {
    let list = BoundedList::deserialize(deserializer)?;
    if list.beyond > 0 {
        return Err(serde::de::Error::custom(EventLogError::TooManyEvents { got: MAX_EVENTS + list.beyond }));
    }
    Ok(list.events)
}

fn json_error(error: &serde_json::Error) -> EventLogError {
    let (line, column) = (error.line(), error.column());
    // serde_json appends the place; what it quotes of the text may be long.
    let text = error.to_string();
    let problem = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    EventLogError::Json { problem: problem.chars().take(LONGEST_PROBLEM).collect(), line, column }
}

/// At most [`MAX_EVENTS`] entries, and how many there were beyond.
struct BoundedList {
    events: Vec<Event>,
    beyond: usize,
}

impl<'de> Deserialize<'de> for BoundedList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = BoundedList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut list = BoundedList { events: Vec::new(), beyond: 0 };
        while list.events.len() < MAX_EVENTS {
            match entries.next_element()? {
                Some(event) => list.events.push(event),
                None => return Ok(list),
            }
        }
        while entries.next_element::<IgnoredAny>()?.is_some() {
            list.beyond += 1;
        }
        Ok(list)
    }
}

/// A log in which every runtime digest was recomputed and every other one has the right length.
///
/// Whether it belongs to a TD is decided by [`EventLog::check_registers`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Event>,
    registers: Registers,
}

impl EventLog {
    /// Checks and replays `events`.
    pub fn new(events: Vec<Event>) -> Result<Self, EventLogError> {
        if events.len() > MAX_EVENTS {
            return Err(EventLogError::TooManyEvents { got: events.len() });
        }
        let registers = replay(&events)?;
        Ok(Self { events, registers })
    }

    /// Parses the JSON array of either dialect; see [`EventLog::new`].
    pub fn parse_json(text: &str) -> Result<Self, EventLogError> {
        parse_events(text).and_then(Self::new)
    }

    /// Parses a TD's binary log (CCEL) and appends the events that the guest measured after it.
    pub fn parse_ccel(ccel: &[u8], runtime: &[RuntimeEvent]) -> Result<Self, EventLogError> {
        let mut events = BootLog::parse(ccel)?.rtmr_events()?;
        events.extend(runtime.iter().map(RuntimeEvent::to_event));
        Self::new(events)
    }

    /// The JSON array with full digests.
    #[must_use]
    pub fn to_json(&self) -> String {
        let full: Vec<Event> =
            self.events.iter().map(|event| event.as_runtime().map_or_else(|| event.clone(), |runtime| runtime.to_event())).collect();
        serde_json::to_string(&full).unwrap_or_default()
    }

    /// The entries, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Registers after the whole log.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// RTMR3 after replaying up to and including the first `boot-mr-done`; `None` if the log has no such event.
    #[must_use]
    pub fn boot_time_rtmr3(&self) -> Option<Digest384> {
        let end = self.events.iter().position(|event| event.is_runtime() && event.event == names::BOOT_MR_DONE)?;
        let until = self.events.get(..=end)?;
        replay(until).ok().and_then(|registers| registers.get(3).copied())
    }

    /// The runtime events, in order.
    pub fn runtime_events(&self) -> impl Iterator<Item = RuntimeEvent> + '_ {
        self.events.iter().filter_map(Event::as_runtime)
    }

    /// Payload of the first runtime event called `name` before `system-ready`.
    ///
    /// Events after `system-ready` come from applications, which could use the same names.
    #[must_use]
    pub fn boot_payload(&self, name: &str) -> Option<Vec<u8>> {
        self.events
            .iter()
            .filter(|event| event.is_runtime())
            .take_while(|event| event.event != names::SYSTEM_READY)
            .find(|event| event.event == name)
            .map(|event| event.event_payload.clone())
    }

    /// Compares the replayed registers with `quoted` ones; the error names the first that differs and how far the log agrees.
    pub fn check_registers(&self, quoted: &Registers) -> Result<(), RegisterMismatch> {
        RegisterMismatch::find(&self.events, &self.registers, quoted).map_or(Ok(()), Err)
    }

    /// One entry in words, see [`describe`]; `None` beyond the end.
    #[must_use]
    pub fn describe(&self, index: usize) -> Option<String> {
        describe(&self.events, index)
    }

    /// First entry at which this log and `expected` (such as one computed from an OS image) part, register by register.
    ///
    /// `registers`: which registers to compare, such as `0..3`.
    #[must_use]
    pub fn first_divergence(&self, expected: &[Event], registers: std::ops::Range<u32>) -> Option<Divergence> {
        Divergence::find(&self.events, expected, registers)
    }
}
