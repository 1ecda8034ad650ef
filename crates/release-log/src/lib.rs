//! The log of key releases: what is in it, how it is signed, and how anybody checks it.
//!
//! ```text
//! Entry ──canonical JSON──▶ leaf ──Frontier──▶ tree head ──LogKey──▶ checkpoint ──WitnessKey──▶ cosigned checkpoint
//!                             └──────────────── ReleaseProof: leaf, path, checkpoint ────────────────┘
//! ```
//! Formats are those of the C2SP documents tlog-tiles, tlog-checkpoint, tlog-proof, tlog-cosignature, tlog-witness and signed-note;
//! the entry is ours. `SPEC.md` has all of them. Everything that is read here comes from a log that may lie.

mod bundle;
mod checkpoint;
mod entry;
mod frontier;
mod proof;
mod witness;

pub use bundle::{BUNDLE_ENTRIES, BundleError, MAX_ENTRY_BYTES, encode_record, entry_bundle_path, parse_bundle};
pub use checkpoint::{Checkpoint, CheckpointError, LogKey, LogVerifier, MAX_TREE_SIZE, TreeHead};
pub use entry::{Entry, EntryError, EventKind};
pub use frontier::{Appended, Frontier};
pub use proof::{ProofError, ReleaseProof};
pub use tlog_tiles::{Hash, HashReader, Tile, check_tree, prove_tree, record_hash, stored_hash_count};
pub use witness::{AddCheckpoint, Cosigner, WitnessKey, WitnessRefusal, WitnessState};
