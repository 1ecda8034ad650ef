//! What an instance with a NitroTPM is to dstack: image by its boot registers, application by its runtime events.

use dstack_event_log::{HashAlgorithm, PcrBank, RuntimeEvent};
use sha2::{Digest as _, Sha256};

use super::{DocumentKind, VerifiedDocument};

/// Register of the runtime events.
const RUNTIME_PCR: u8 = 14;
/// Boot loader and image, secure boot state, command line.
const BOOT_PCRS: [u8; 3] = [4, 7, 12];

/// Why a genuine document does not describe the instance that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceFault {
    /// Not of a NitroTPM.
    #[error("the document is not of a NitroTPM")]
    NotAnInstance,
    /// A register that is needed is not in the document.
    #[error("the document has no PCR {pcr}")]
    NoRegister {
        /// Its number.
        pcr: u8,
    },
    /// Another image was booted.
    #[error("PCR 4, 7 and 12 hash to {got}, the image's measurement document says {expected}")]
    OtherImage {
        /// By the measurement document, hex.
        expected: String,
        /// By the document, hex.
        got: String,
    },
    /// The events are not those that were measured.
    #[error("the runtime events replay to PCR 14 {replayed}, the document has {got}")]
    OtherEvents {
        /// By the events, hex.
        replayed: String,
        /// By the document, hex.
        got: String,
    },
}

/// The registers of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceBoot {
    boot: [[u8; 48]; 3],
    runtime: [u8; 48],
}

impl InstanceBoot {
    /// `SHA-256(PCR4 || PCR7 || PCR12 || SHA-256(key provider payload))`; 32 zero bytes for the last where there is none.
    ///
    /// `key_provider`: the measured payload; `None` for the boot-time form.
    #[must_use]
    pub fn mr_system(&self, key_provider: Option<&[u8]>) -> [u8; 32] {
        let provider: [u8; 32] = key_provider.map_or([0; 32], |payload| Sha256::digest(payload).into());
        self.boot_hash().chain_update(provider).finalize().into()
    }

    /// `SHA-256(PCR4 || PCR7 || PCR12 || PCR14)`.
    #[must_use]
    pub fn mr_aggregated(&self) -> [u8; 32] {
        self.boot_hash().chain_update(self.runtime).finalize().into()
    }

    fn boot_hash(&self) -> Sha256 {
        self.boot.iter().fold(Sha256::new(), |hash, pcr| hash.chain_update(pcr))
    }
}

/// `SHA-256(PCR4 || PCR7 || PCR12)` of a document: what the measurement document of an image for AWS says.
///
/// # Errors
/// [`InstanceFault::NotAnInstance`], [`InstanceFault::NoRegister`].
pub fn boot_pcr_digest(verified: &VerifiedDocument) -> Result<[u8; 32], InstanceFault> {
    let [first, second, third] = boot_pcrs(verified)?;
    Ok(Sha256::new().chain_update(first).chain_update(second).chain_update(third).finalize().into())
}

/// Checks that an instance booted the image with `expected` as its [`boot_pcr_digest`], and that `events` are its runtime events.
///
/// `expected`: of the image's measurement document, bound to its hash by the caller. `events`: untrusted.
///
/// # Errors
/// [`InstanceFault`].
pub fn check_instance(verified: &VerifiedDocument, expected: &[u8; 32], events: &[RuntimeEvent]) -> Result<InstanceBoot, InstanceFault> {
    check_boot(verified, expected)?;
    check_events(verified, events)?;
    registers(verified)
}

/// The registers that tell a dstack instance, whatever they are.
///
/// # Errors
/// [`InstanceFault::NotAnInstance`], [`InstanceFault::NoRegister`].
pub fn registers(verified: &VerifiedDocument) -> Result<InstanceBoot, InstanceFault> {
    Ok(InstanceBoot { boot: boot_pcrs(verified)?, runtime: register(verified, RUNTIME_PCR)? })
}

/// Checks that an instance booted the image with `expected` as its [`boot_pcr_digest`].
///
/// # Errors
/// [`InstanceFault`].
pub fn check_boot(verified: &VerifiedDocument, expected: &[u8; 32]) -> Result<(), InstanceFault> {
    let got = boot_pcr_digest(verified)?;
    if got == *expected {
        return Ok(());
    }
    Err(InstanceFault::OtherImage { expected: hex::encode(expected), got: hex::encode(got) })
}

/// Checks that `events` are the instance's runtime events.
///
/// # Errors
/// [`InstanceFault`].
pub fn check_events(verified: &VerifiedDocument, events: &[RuntimeEvent]) -> Result<(), InstanceFault> {
    let runtime = register(verified, RUNTIME_PCR)?;
    let mut bank = PcrBank::new(HashAlgorithm::Sha384);
    for event in events {
        bank.extend(RUNTIME_PCR.into(), event.digest_for(HashAlgorithm::Sha384).as_bytes()).unwrap_or_default();
    }
    match bank.value(RUNTIME_PCR.into()) {
        Some(replayed) if *replayed.as_bytes() == runtime => Ok(()),
        replayed => {
            Err(InstanceFault::OtherEvents { replayed: replayed.map(ToString::to_string).unwrap_or_default(), got: hex::encode(runtime) })
        }
    }
}

fn boot_pcrs(verified: &VerifiedDocument) -> Result<[[u8; 48]; 3], InstanceFault> {
    let [first, second, third] = BOOT_PCRS;
    Ok([register(verified, first)?, register(verified, second)?, register(verified, third)?])
}

fn register(verified: &VerifiedDocument, pcr: u8) -> Result<[u8; 48], InstanceFault> {
    let document = verified.document();
    if document.kind != DocumentKind::NitroTpm {
        return Err(InstanceFault::NotAnInstance);
    }
    document.pcrs.get(&pcr).copied().ok_or(InstanceFault::NoRegister { pcr })
}
