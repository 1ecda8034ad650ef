//! The software TEE: what Intel's hardware, its quoting enclave and its certification service do, without the hardware.
//!
//! ```text
//! VMM ── PUT /td/<vm> (Unix socket) ──▶ registers computed from the files that are about to be booted
//! guest ── vsock port 4050 ──▶ extend RTMR2/RTMR3, quote (TDX version 4, signed under a generated vendor root)
//! verifier ── HTTP, paths of a PCCS ──▶ TCB information, quoting enclave identity, revocation lists
//! ```
//! The vendor's keys are generated on the first run and lie in the state directory. Nobody accepts this vendor unless `root.pem` is put
//! under `[danger]` of its configuration, and every verdict that rests on it says SIMULATED. Trust: this program is on the host's side;
//! it is as honest as the host, which is all that is simulated. TD states survive a restart and `kill -9`: an extension is on disk
//! before it is answered.

mod collateral;
mod config;
mod control;
mod daemon;
mod der;
mod device;
mod error;
mod launch;
mod pccs;
mod quote;
mod td;
mod vendor;

pub use collateral::{CollateralSet, SignedDocument};
pub use config::Config;
pub use daemon::{Daemon, DaemonAddresses};
pub use device::device_of;
pub use error::SimulatorError;
pub use quote::{QuoteBody, QuotingEnclave};
pub use td::{Registers, TdRecord, TdStore};
pub use vendor::{Vendor, VendorError};
