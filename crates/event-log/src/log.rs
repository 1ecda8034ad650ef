//! A log whose digests are consistent.

use crate::{
    Digest384, Registers,
    divergence::{Divergence, RegisterMismatch},
    event::Event,
    registers::replay,
    runtime::{RuntimeEvent, names},
};

/// Largest JSON text that is parsed.
pub const MAX_LOG_BYTES: usize = 8 << 20;
/// Most entries a log may have.
pub const MAX_EVENTS: usize = 16_384;

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
    #[error("event log is not valid JSON of the expected form at line {line} column {column}")]
    Json {
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
        if text.len() > MAX_LOG_BYTES {
            return Err(EventLogError::TooLong { got: text.len(), limit: MAX_LOG_BYTES });
        }
        let events = serde_json::from_str(text).map_err(|error| EventLogError::Json { line: error.line(), column: error.column() })?;
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
        let end = self.events.iter().position(|event| event.as_runtime().is_some_and(|runtime| runtime.event == names::BOOT_MR_DONE))?;
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
        self.runtime_events()
            .take_while(|event| event.event != names::SYSTEM_READY)
            .find(|event| event.event == name)
            .map(|event| event.payload)
    }

    /// Compares the replayed registers with `quoted` ones; the error names the first that differs and how far the log agrees.
    pub fn check_registers(&self, quoted: &Registers) -> Result<(), RegisterMismatch> {
        RegisterMismatch::find(&self.events, &self.registers, quoted).map_or(Ok(()), Err)
    }

    /// First entry at which this log and `expected` (such as one computed from an OS image) part, register by register.
    ///
    /// `registers`: which registers to compare, such as `0..3`.
    #[must_use]
    pub fn first_divergence(&self, expected: &[Event], registers: std::ops::Range<u32>) -> Option<Divergence> {
        Divergence::find(&self.events, expected, registers)
    }
}
