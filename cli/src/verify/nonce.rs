//! The challenge.

use std::{fmt, str::FromStr};

use dstack_attestation::ReportData;
use rand_core::{OsRng, RngCore as _};

use crate::failure::Failure;

/// 1 to 64 bytes that the evidence must contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nonce(Vec<u8>);

impl Nonce {
    /// 32 random bytes.
    #[must_use]
    pub(super) fn fresh() -> Self {
        let mut bytes = vec![0; 32];
        OsRng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The report data it must lead to: padded with zeros on the right.
    #[must_use]
    pub(super) fn report_data(&self) -> ReportData {
        let mut data = [0; 64];
        for (to, from) in data.iter_mut().zip(&self.0) {
            *to = *from;
        }
        data
    }
}

impl FromStr for Nonce {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = hex::decode(text.strip_prefix("0x").unwrap_or(text)).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > 64 {
            return Err(Failure::usage(
                "verify/bad-nonce",
                format!("`{text}` is no nonce"),
                "give 1 to 64 bytes in hex, or leave --nonce out for a fresh one",
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn padded_on_the_right() {
        let nonce: Nonce = "0xABcd".parse().unwrap();

        assert_eq!(nonce.to_string(), "abcd");
        assert_eq!(nonce.report_data().get(..3).unwrap(), [0xab, 0xcd, 0]);
    }

    #[test]
    fn too_long_empty_and_no_hex_are_refused() {
        for text in ["", "xyz", "abc", &"00".repeat(65)] {
            assert_eq!(text.parse::<Nonce>().unwrap_err().exit, 2, "{text}");
        }
    }

    #[test]
    fn fresh_ones_differ() {
        assert_ne!(Nonce::fresh(), Nonce::fresh());
    }
}
