//! A quote with what it takes to understand it.

use dstack_event_log::{HashAlgorithm, PCRS};
use scale::Decode as _;

use super::reader::TpmFormatError;
use crate::bounded::Bounded;

/// Most register values and most log entries that are read.
const MAX_VALUES: usize = PCRS * 4;
const MAX_EVENTS: usize = 16_384;
/// The envelope's number for Google's cloud.
const GOOGLE: u8 = 1;

/// A register's value as the sender tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrValue {
    /// Number.
    pub pcr: u32,
    /// Bank.
    pub algorithm: HashAlgorithm,
    /// As long as the bank's digests.
    pub value: Vec<u8>,
}

/// An entry of the boot log, as far as it is extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrEvent {
    /// Register.
    pub pcr: u32,
    /// Digest of one of the quoted banks.
    pub digest: Vec<u8>,
}

/// A TPM quote. Everything in it is unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmQuote {
    /// `TPMS_ATTEST`, which is signed.
    pub message: Vec<u8>,
    /// `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// Values of the quoted registers.
    pub pcrs: Vec<PcrValue>,
    /// Certificate of the attestation key, DER.
    pub certificate: Vec<u8>,
    /// The boot log, of any registers, in order; may be empty.
    pub events: Vec<PcrEvent>,
}

impl TpmQuote {
    /// Takes a quote from the start of `input`, in the form of the version 0 envelope.
    ///
    /// # Errors
    /// [`TpmFormatError::Envelope`].
    pub fn decode_scale(input: &mut &[u8]) -> Result<Self, TpmFormatError> {
        type Values = Bounded<(u32, String, Vec<u8>), MAX_VALUES>;
        type Wire = (Vec<u8>, Vec<u8>, Values, Vec<u8>, u8, Bounded<(u32, Vec<u8>), MAX_EVENTS>);
        let refused = |reason: String| TpmFormatError::Envelope { reason };
        let (message, signature, values, certificate, cloud, events) = Wire::decode(input).map_err(|error| refused(error.to_string()))?;
        if cloud != GOOGLE {
            return Err(refused(format!("cloud number {cloud} is not known")));
        }
        let value = |(pcr, algorithm, value): (u32, String, Vec<u8>)| {
            let algorithm = bank(&algorithm).ok_or_else(|| refused(format!("bank {algorithm:.20}")))?;
            Ok(PcrValue { pcr, algorithm, value })
        };
        Ok(Self {
            message,
            signature,
            pcrs: values.0.into_iter().map(value).collect::<Result<_, _>>()?,
            certificate,
            events: events.0.into_iter().map(|(pcr, digest)| PcrEvent { pcr, digest }).collect(),
        })
    }
}

fn bank(name: &str) -> Option<HashAlgorithm> {
    match name {
        "sha256" => Some(HashAlgorithm::Sha256),
        "sha384" => Some(HashAlgorithm::Sha384),
        "sha512" => Some(HashAlgorithm::Sha512),
        _ => None,
    }
}
