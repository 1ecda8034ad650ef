//! Collects evidence from the machine it runs on.
//!
//! [`Attester::open`] finds the TEE: Intel TDX through configfs-tsm and the measurement registers in sysfs, or, in builds with the
//! feature `simulated` and on machines without any TEE device, the software TEE behind the host channel. Runtime events are measured
//! into RTMR3 and logged so that a crash at any point leaves a log that replays ([`RuntimeLog`]).
//!
//! All calls block (a quote may take a second); asynchronous programs use a blocking task. Trust: everything from here is unverified
//! to others; verification is `dstack-attestation`'s part.

mod attester;
mod device;
mod error;
mod runtime_log;
#[cfg(feature = "simulated")]
mod simulated;
mod tdx;

pub use attester::{Attester, Options, Quoted};
pub use device::{SealingKey, TeeDevice};
pub use error::AttesterError;
pub use runtime_log::RuntimeLog;
#[cfg(feature = "simulated")]
pub use simulated::SimulatedDevice;
pub use tdx::{TdxDevice, TdxPaths};
