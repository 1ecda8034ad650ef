//! Event logs of a TD: what was measured into RTMR0 to RTMR3, and the proof that it was.
//!
//! A log is untrusted until its replay equals the registers of a verified quote. Replay alone is not enough for runtime
//! events: their digest covers name and payload, so it is always recomputed and never taken from the log ([`EventLog::new`]).
//! Formats, digests and the two JSON dialects are described in `SPEC.md`.
//! Boot events arrive as JSON or as the firmware's binary log ([`BootLog`]: CCEL of a TD, TCG2 log of a TPM).

mod algorithm;
mod boot_log;
mod content;
mod describe;
mod divergence;
mod event;
mod event_type;
mod log;
mod pcr_bank;
mod reader;
mod registers;
mod runtime;
mod uefi;

pub use algorithm::{BankDigest, HashAlgorithm};
pub use boot_log::{BootEvent, BootLog, BootLogError, DeclaredAlgorithm, MAX_ALGORITHMS, MAX_BOOT_LOG_BYTES};
pub use content::Content;
pub use describe::describe;
pub use divergence::{Divergence, DivergentEvent, RegisterMismatch};
pub use event::{Event, EventVersion};
pub use event_type::event_type_name;
pub use log::{EventLog, EventLogError, MAX_EVENTS, MAX_LOG_BYTES, deserialize_events, parse_events};
pub use pcr_bank::{PCRS, PcrBank};
pub use registers::{Digest384, REGISTERS, Registers, extend, replay};
pub use runtime::{RUNTIME_EVENT_TYPE, RUNTIME_REGISTER, RuntimeEvent, names};
pub use uefi::Guid;
