//! The release log: what went out and what was refused, in a tree that can only grow.
//!
//! ```text
//! call ──Entry──▶ queue ──▶ thread: batch ──▶ hashes, entries, one fdatasync ──▶ signed checkpoint ──▶ proof to each call
//!                                                                                     └──▶ witnesses, /log/…
//! ```
//! A call is answered after its entry is on disk; whatever comes meanwhile shares the next write. What cannot be written is not
//! released. Files: `entries` is the log, everything else can be made again from it; a torn last entry was promised to nobody.

mod error;
mod files;
mod serve;
mod witnesses;
mod writer;

pub use error::ReleaseLogError;
pub(crate) use serve::router;
pub(crate) use witnesses::WitnessSettings;
pub(crate) use writer::ReleaseLog;
