//! Bytes inside text: hex, base64, PEM, JSON arrays of numbers.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// The usual alphabet, with or without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Hex in either case, with or without `0x`, with white space anywhere.
#[must_use]
pub fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.bytes().any(|byte| byte.is_ascii_whitespace()) {
        let joined: String = digits.split_ascii_whitespace().collect();
        return hex::decode(joined).ok();
    }
    hex::decode(digits).ok()
}

/// Base64 of the usual alphabet, with white space anywhere.
pub(crate) fn parse_base64(text: &str) -> Option<Vec<u8>> {
    let joined: String = text.split_ascii_whitespace().collect();
    BASE64.decode(joined).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn hex_of_every_habit_is_read() {
        for text in ["0400ab", " 0x0400AB\n", "04 00\nab"] {
            assert_eq!(parse_hex(text).unwrap(), [4, 0, 0xab], "{text:?}");
        }
        for text in ["0x0", "zz", "04,00"] {
            assert_eq!(parse_hex(text), None, "{text:?}");
        }
    }

    #[test]
    fn base64_needs_no_padding() {
        assert_eq!(parse_base64("BACr").unwrap(), [4, 0, 0xab]);
        assert_eq!(parse_base64("BA\nA=").unwrap(), parse_base64("BAA").unwrap());
        assert_eq!(parse_base64("{}"), None);
    }
}
