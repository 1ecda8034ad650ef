//! Register arithmetic.

use std::fmt;

use sha2::{Digest as _, Sha384};

use crate::{EventLogError, event::Event};

/// A SHA-384 digest or a register's value.
pub type Digest384 = [u8; 48];

/// Number of runtime measurement registers a TD has.
pub const REGISTERS: usize = 4;

/// RTMR0 to RTMR3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Registers(pub [Digest384; REGISTERS]);

impl Registers {
    /// All registers zero, as when a TD starts.
    pub const ZERO: Self = Self([[0; 48]; REGISTERS]);

    /// The value of one register, `None` for an index above 3.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Digest384> {
        self.0.get(index)
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(hex::encode)).finish()
    }
}

/// `SHA-384(value || digest)`: the value after one extension.
///
/// Source: Intel TDX Module ABI, `TDG.MR.RTMR.EXTEND`.
#[must_use]
pub fn extend(value: &Digest384, digest: &Digest384) -> Digest384 {
    Sha384::new().chain_update(value).chain_update(digest).finalize().into()
}

/// Register values after replaying `events` from zero.
///
/// `events`: log order, untrusted. Digests of runtime events are recomputed from name and payload.
/// Errors: those of [`EventLog::new`](crate::EventLog::new). A match with a quote is the caller's check.
pub fn replay(events: &[Event]) -> Result<Registers, EventLogError> {
    events.iter().enumerate().try_fold(Registers::ZERO, |mut registers, (index, event)| {
        let digest = event.checked_digest(index)?;
        let register = usize::try_from(event.imr).ok().and_then(|imr| registers.0.get_mut(imr));
        let register = register.ok_or(EventLogError::NoSuchRegister { index, imr: event.imr })?;
        *register = extend(register, &digest);
        Ok(registers)
    })
}
