//! A key that a TPM keeps for this measured system: an object under the TPM's storage root that opens only with today's PCRs.
//!
//! ```text
//! storage root (never leaves the TPM) ──wraps──▶ object in a file ──policy: PCRs as when it was made──▶ 32 bytes
//! ```
//! The file is not secret, and whoever has the disk can put another one there. So the TPM is asked to confirm that the object was made in it
//! while the PCRs were what they are now: else another system on this machine could have made it, around a key that it knows.
//!
//! Neither the file nor the key says how fresh it is, and what the TPM sends goes over its bus as it is: of a TPM of the hypervisor the
//! hypervisor can read it.

mod chip;
mod pcrs;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_key_hierarchy::Secret;
use rand_core::OsRng;
use tpm2_protocol::data::{TpmCc, TpmRcBase};

pub use chip::ChipError;
use chip::{Chip, SealedObject};
pub use pcrs::PcrBank;
use pcrs::PcrValues;
pub(crate) use pcrs::Pcrs;

use super::{Kind, PlatformKey, SealingError};

const MAGIC: &[u8; 8] = b"DSTKTPM1";
const MAX_FILE_BYTES: u64 = 16 << 10;

/// Why the TPM's key is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmKeyError {
    /// No TPM.
    #[error("opening the TPM {}", path.display())]
    Open {
        /// Its device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The TPM.
    #[error(transparent)]
    Chip(#[from] ChipError),
    /// There is no such register.
    #[error("the TPM has no {bank:?} bank with PCR {number}")]
    NoPcr {
        /// The bank.
        bank: PcrBank,
        /// The register.
        number: u8,
    },
    /// Nothing to bind to.
    #[error("nothing was measured into any of the PCRs, so every system on this machine would get the key")]
    Untouched,
    /// The file with the sealed key.
    #[error("{action} {}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There are keys, and what they are sealed under is gone.
    #[error("{} is missing, and the keys are sealed under the key in it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Not such a file.
    #[error("{} does not hold a key that a TPM sealed", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Sealed with other PCRs in mind.
    #[error("{} is sealed under other PCRs than the configuration names", path.display())]
    OtherPcrs {
        /// The file.
        path: PathBuf,
    },
    /// Another system.
    #[error("this system is measured differently from the one that sealed the key: PCR {}", list(changed))]
    Changed {
        /// Registers with another value.
        changed: Vec<u8>,
    },
    /// Another TPM.
    #[error("another TPM sealed the key, or this one was cleared since")]
    OtherTpm,
    /// Another system made it for this one.
    #[error("the sealed key was not made by this system, so somebody else may know it")]
    Planted,
}

fn list(numbers: &[u8]) -> String {
    numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

impl UserFacing for TpmKeyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } | Self::Chip(_) | Self::NoPcr { .. } => "kms/sealing-tpm",
            Self::Untouched => "kms/sealing-tpm-unmeasured",
            Self::Io { .. } | Self::Malformed { .. } | Self::Missing { .. } => "kms/sealing-tpm-file",
            Self::OtherPcrs { .. } | Self::Changed { .. } => "kms/sealing-tpm-changed",
            Self::OtherTpm => "kms/sealing-tpm-other",
            Self::Planted => "kms/sealing-tpm-planted",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Open { .. } => "give sealing.tpm_device, and let this user read and write it".to_owned(),
            Self::Chip(_) => "check the TPM; its owner hierarchy must have no password".to_owned(),
            Self::NoPcr { .. } => "set sealing.tpm_bank and sealing.tpm_pcrs to what the TPM has".to_owned(),
            Self::Untouched => "boot a system that measures itself, or name its PCRs as sealing.tpm_pcrs".to_owned(),
            Self::Io { path, .. } => format!("check space and permissions of {}", path.display()),
            Self::Missing { path } | Self::Malformed { path } => {
                format!("restore {} from a backup of this machine, else onboard from a replica or restore from shares", path.display())
            }
            Self::OtherPcrs { .. } => "restore sealing.tpm_bank and sealing.tpm_pcrs as they were at the first start".to_owned(),
            Self::Changed { .. } => {
                "boot the system that sealed the key, with nothing else measured before this start, else onboard from a replica or \
                 restore from shares"
                    .to_owned()
            }
            Self::OtherTpm => "start on the machine that sealed the key, else onboard from a replica or restore from shares".to_owned(),
            Self::Planted => {
                "find out who wrote the file; its keys count for nothing: onboard from a replica or restore from shares".to_owned()
            }
        }
    }
}

/// The TPM at a path.
pub(crate) struct Tpm<'a> {
    /// Device or socket.
    pub(crate) device: &'a Path,
    /// What the key is bound to.
    pub(crate) pcrs: Pcrs,
    /// Where the sealed key is; made at the first start.
    pub(crate) file: PathBuf,
    /// Whether there are keys that were sealed under it.
    pub(crate) is_in_use: bool,
}

impl PlatformKey for Tpm<'_> {
    fn kind(&self) -> Kind {
        Kind::Tpm
    }

    async fn key(&self) -> Result<Secret<32>, SealingError> {
        crate::tee::blocking(|| self.load_or_make()).map_err(SealingError::Tpm)
    }
}

impl Tpm<'_> {
    fn load_or_make(&self) -> Result<Secret<32>, TpmKeyError> {
        let mut chip = Chip::open(self.device).map_err(|source| TpmKeyError::Open { path: self.device.to_owned(), source })?;
        let values = chip.read(&self.pcrs)?;
        if let Some(number) = self.pcrs.numbers().find(|number| !values.pcrs().numbers().any(|found| found == *number)) {
            return Err(TpmKeyError::NoPcr { bank: self.pcrs.bank(), number });
        }
        if values.are_untouched() {
            return Err(TpmKeyError::Untouched);
        }
        // Two that start at once must not make two keys.
        let _lock = self.lock()?;
        match self.read()? {
            Some(bytes) => self.open(&mut chip, &values, &bytes),
            None if self.is_in_use => Err(TpmKeyError::Missing { path: self.file.clone() }),
            None => self.make(&mut chip, &values),
        }
    }

    fn make(&self, chip: &mut Chip, values: &PcrValues) -> Result<Secret<32>, TpmKeyError> {
        let key = Secret::generate(&mut OsRng);
        let sealed = chip.seal(key.expose(), values)?;
        let bytes = [MAGIC.as_slice(), &values.encode(), &sealed.encode().map_err(ChipError::from)?].concat();
        dstack_service::fs::write_atomic(&self.file, &bytes, 0o600).map_err(|source| self.io("writing", source))?;
        tracing::info!(file = %self.file.display(), pcrs = list(&self.pcrs.numbers().collect::<Vec<_>>()), "the TPM sealed a new key");
        Ok(key)
    }

    fn open(&self, chip: &mut Chip, now: &PcrValues, bytes: &[u8]) -> Result<Secret<32>, TpmKeyError> {
        let malformed = || TpmKeyError::Malformed { path: self.file.clone() };
        let (then, sealed) = bytes.strip_prefix(MAGIC).and_then(PcrValues::decode).ok_or_else(malformed)?;
        let sealed = SealedObject::decode(sealed).ok_or_else(malformed)?;
        if then.pcrs() != self.pcrs {
            return Err(TpmKeyError::OtherPcrs { path: self.file.clone() });
        }
        // The recorded values only tell which ones changed; that one did is the TPM's word.
        let opened = chip.unseal(&sealed, &self.pcrs).map_err(|error| match error {
            _ if error.is(TpmCc::Unseal, TpmRcBase::PolicyFail) => TpmKeyError::Changed { changed: then.changed(now) },
            _ if error.is(TpmCc::Load, TpmRcBase::Integrity) => TpmKeyError::OtherTpm,
            _ if error.is(TpmCc::CertifyCreation, TpmRcBase::Ticket) => TpmKeyError::Planted,
            error => error.into(),
        })?;
        if !sealed.was_made_with(now).map_err(ChipError::from)? {
            return Err(TpmKeyError::Planted);
        }
        Secret::from_slice(&opened).map_err(|_| malformed())
    }

    fn read(&self) -> Result<Option<Vec<u8>>, TpmKeyError> {
        let mut bytes = Vec::new();
        match File::open(&self.file).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.io("reading", source)),
        }
    }

    fn lock(&self) -> Result<File, TpmKeyError> {
        let parent = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let lock = fs::create_dir_all(parent).and_then(|()| File::open(parent)).and_then(|lock| lock.lock().map(|()| lock));
        lock.map_err(|source| self.io("locking the directory of", source))
    }

    fn io(&self, action: &'static str, source: io::Error) -> TpmKeyError {
        TpmKeyError::Io { action, path: self.file.clone(), source }
    }
}

#[cfg(test)]
mod tests;
