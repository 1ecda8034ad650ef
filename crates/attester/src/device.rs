//! What every TEE of the TDX kind offers.

use dstack_attestation::ReportData;
use dstack_event_log::{Digest384, Event};

use zeroize::Zeroizing;

use crate::AttesterError;

/// 32 secret bytes; whoever takes them erases them.
pub type SealingKey = Zeroizing<[u8; 32]>;

/// A TD's own view of its TEE. Calls block.
pub trait TeeDevice: Send + Sync {
    /// `tdx` or `simulated`.
    fn name(&self) -> &'static str;

    /// A raw quote over `report_data`.
    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, AttesterError>;

    /// Present value of RTMR3.
    fn rtmr3(&self) -> Result<Digest384, AttesterError>;

    /// A key that only the same measured system gets again on this machine, for `label`. TDX has none.
    fn sealing_key(&self, _label: &str) -> Result<SealingKey, AttesterError> {
        Err(AttesterError::NoSealingKey { device: self.name() })
    }

    /// RTMR3 becomes `SHA-384(RTMR3 || digest)`.
    fn extend_rtmr3(&self, digest: &Digest384) -> Result<(), AttesterError>;

    /// Events of RTMR0 to RTMR2, if the device has them. A verifier that knows the OS image does not need them.
    fn boot_events(&self) -> Result<Vec<Event>, AttesterError>;
}
