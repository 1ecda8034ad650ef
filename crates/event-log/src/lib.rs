//! Event logs of a TD: what was measured into RTMR0 to RTMR3, and the proof that it was.
//!
//! A log is untrusted until its replay equals the registers of a verified quote. Replay alone is not enough for runtime
//! events: their digest covers name and payload, so it is always recomputed and never taken from the log ([`EventLog::new`]).
//! Formats, digests and the two JSON dialects are described in `SPEC.md`.
//!
//! Not here: parsing of the firmware's binary log (CCEL, TCG2). The boot events arrive as JSON.

mod divergence;
mod event;
mod log;
mod registers;
mod runtime;

pub use divergence::{Divergence, RegisterMismatch};
pub use event::{Event, EventVersion};
pub use log::{EventLog, EventLogError, MAX_EVENTS, MAX_LOG_BYTES};
pub use registers::{Digest384, REGISTERS, Registers, extend, replay};
pub use runtime::{RUNTIME_EVENT_TYPE, RUNTIME_REGISTER, RuntimeEvent, names};
