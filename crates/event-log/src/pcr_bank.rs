//! Platform configuration registers of one hash algorithm.

use crate::{BankDigest, HashAlgorithm};

/// Registers that a TPM of the PC Client profile has.
pub const PCRS: usize = 24;
/// Registers that a dynamic launch resets; until then all their bits are set.
const DYNAMIC: std::ops::RangeInclusive<usize> = 17..=22;

/// The PCRs of one algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrBank {
    algorithm: HashAlgorithm,
    values: [BankDigest; PCRS],
    extended: [bool; PCRS],
}

impl PcrBank {
    /// PCRs as a TPM starts: zero, and PCR 17 to 22 all ones.
    #[must_use]
    pub fn new(algorithm: HashAlgorithm) -> Self {
        let start = |pcr: usize| BankDigest::filled(algorithm, if DYNAMIC.contains(&pcr) { 0xff } else { 0 });
        Self { algorithm, values: std::array::from_fn(start), extended: [false; PCRS] }
    }

    /// The bank's algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Value of a PCR, `None` for an index above 23.
    #[must_use]
    pub fn value(&self, pcr: u32) -> Option<&BankDigest> {
        usize::try_from(pcr).ok().and_then(|pcr| self.values.get(pcr))
    }

    /// Whether anything was extended into this PCR.
    #[must_use]
    pub fn is_extended(&self, pcr: u32) -> bool {
        usize::try_from(pcr).ok().and_then(|pcr| self.extended.get(pcr)).copied().unwrap_or(false)
    }

    /// Makes a PCR `H(value || digest)`. `None`, and nothing changed: no such PCR, or a digest of another length.
    #[must_use = "an extension that was refused leaves the bank as it was"]
    pub fn extend(&mut self, pcr: u32, digest: &[u8]) -> Option<()> {
        let pcr = usize::try_from(pcr).ok().filter(|_| digest.len() == self.algorithm.digest_length())?;
        let value = self.values.get_mut(pcr)?;
        *value = self.algorithm.digest(&[value.as_bytes(), digest]);
        *self.extended.get_mut(pcr)? = true;
        Some(())
    }

    /// What a TPM quote signs: digest over the values of `pcrs`, in the order given (a quote has them ascending).
    ///
    /// `with`: the hash of the quote's signature scheme. `None` if a PCR does not exist.
    #[must_use]
    pub fn composite(&self, pcrs: &[u32], with: HashAlgorithm) -> Option<BankDigest> {
        let values: Option<Vec<&[u8]>> = pcrs.iter().map(|pcr| self.value(*pcr).map(BankDigest::as_bytes)).collect();
        values.map(|values| with.digest(&values))
    }

    /// Start value of PCR 0 after a startup from `locality`. `false`, and nothing changed: too late, or no such startup.
    pub(crate) fn start_at_locality(&mut self, locality: u8) -> bool {
        let possible = matches!(locality, 0 | 3 | 4) && !self.is_extended(0);
        if let [first, ..] = &mut self.values
            && possible
        {
            *first = BankDigest::filled(self.algorithm, 0).with_last_byte(locality);
        }
        possible
    }
}
