//! Which PCRs a key is bound to, and what is in them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tpm2_protocol::data::TpmAlgId;

/// Platform configuration registers have numbers below this.
const PCR_COUNT: u8 = 24;

/// Which digests of the PCRs count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PcrBank {
    /// 32 bytes.
    #[default]
    Sha256,
    /// 48 bytes.
    Sha384,
}

impl PcrBank {
    pub(super) fn algorithm(self) -> TpmAlgId {
        match self {
            Self::Sha256 => TpmAlgId::Sha256,
            Self::Sha384 => TpmAlgId::Sha384,
        }
    }

    fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }
}

/// A set of PCRs of one bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pcrs {
    bank: PcrBank,
    /// Bit n for PCR n.
    bits: u32,
}

impl Pcrs {
    /// The PCRs with these numbers.
    ///
    /// Errors: none, or one that there is not.
    pub(crate) fn new(bank: PcrBank, numbers: &[u8]) -> Result<Self, &'static str> {
        if numbers.iter().any(|number| *number >= PCR_COUNT) {
            return Err("must be numbers from 0 to 23");
        }
        let bits = numbers.iter().fold(0, |bits, number| bits | 1_u32 << number);
        if bits == 0 { Err("must name at least one PCR") } else { Ok(Self { bank, bits }) }
    }

    pub(super) fn one(bank: PcrBank, number: u8) -> Self {
        Self { bank, bits: 1 << (number % PCR_COUNT) }
    }

    pub(super) fn bank(&self) -> PcrBank {
        self.bank
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        let bits = self.bits;
        (0..PCR_COUNT).filter(move |number| bits & 1 << number != 0)
    }

    /// As a TPM writes them down.
    pub(super) fn bitmap(&self) -> [u8; 3] {
        let [first, second, third, _] = self.bits.to_le_bytes();
        [first, second, third]
    }
}

/// Contents of PCRs, by rising number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PcrValues {
    bank: PcrBank,
    values: Vec<(u8, Vec<u8>)>,
}

impl PcrValues {
    pub(super) fn new(bank: PcrBank, values: Vec<(u8, Vec<u8>)>) -> Self {
        Self { bank, values }
    }

    /// Which PCRs these are of.
    pub(super) fn pcrs(&self) -> Pcrs {
        Pcrs { bank: self.bank, bits: self.values.iter().fold(0, |bits, (number, _)| bits | 1 << (number % PCR_COUNT)) }
    }

    /// What a policy compares: SHA-256 of the values one after the other.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for (_, value) in &self.values {
            digest.update(value);
        }
        digest.finalize().into()
    }

    /// Whether nothing was ever measured into any of them.
    pub(super) fn are_untouched(&self) -> bool {
        self.values.iter().all(|(_, value)| value.iter().all(|byte| *byte == 0) || value.iter().all(|byte| *byte == 0xff))
    }

    /// Numbers of those that have another value in `now`.
    pub(super) fn changed(&self, now: &Self) -> Vec<u8> {
        self.values.iter().filter(|old| !now.values.contains(old)).map(|(number, _)| *number).collect()
    }

    /// `bank (u16) || count (1) || (number (1) || value)…`
    pub(super) fn encode(&self) -> Vec<u8> {
        let count = u8::try_from(self.values.len()).unwrap_or(PCR_COUNT);
        let mut bytes = self.bank.algorithm().value().to_be_bytes().to_vec();
        bytes.push(count);
        for (number, value) in &self.values {
            bytes.push(*number);
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// Reads what [`Self::encode`] wrote and what follows it; none if it is something else.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (bank, rest) = bytes.split_first_chunk::<2>()?;
        let bank = [PcrBank::Sha256, PcrBank::Sha384].into_iter().find(|known| known.algorithm().value().to_be_bytes() == *bank)?;
        let (count, mut rest) = rest.split_first()?;
        let mut values = Vec::new();
        for _ in 0..*count {
            let (number, after) = rest.split_first()?;
            let (value, after) = after.split_at_checked(bank.digest_bytes())?;
            values.push((*number, value.to_vec()));
            rest = after;
        }
        Some((Self { bank, values }, rest))
    }
}
