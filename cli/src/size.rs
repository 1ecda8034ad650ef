//! Sizes as people write them.

use crate::failure::{Failure, Outcome};

const MIB: u64 = 1 << 20;

/// The unit that a bare number has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BareUnit {
    /// For memory.
    Mebibytes,
    /// For disks.
    Gibibytes,
}

/// Reads `2G`, `1536M`, `1T`, also with `B`, `iB`; returns bytes.
///
/// Errors: anything else, zero, or more than 2^63 bytes.
pub(crate) fn parse_size(option: &str, text: &str, bare: BareUnit) -> Outcome<u64> {
    let fail = || {
        let fix = format!("write {option} as a number with M, G or T, such as 2G");
        Failure::usage("cli/bad-size", format!("`{text}` is not a size"), fix)
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| fail())?;
    let unit = match (lower.get(digits.len()..).unwrap_or_default(), bare) {
        ("m" | "mb" | "mib", _) | ("", BareUnit::Mebibytes) => MIB,
        ("g" | "gb" | "gib", _) | ("", BareUnit::Gibibytes) => 1024 * MIB,
        ("t" | "tb" | "tib", _) => 1024 * 1024 * MIB,
        _ => return Err(fail()),
    };
    number.checked_mul(unit).filter(|bytes| *bytes > 0 && *bytes < 1 << 63).ok_or_else(fail)
}

/// In whole MiB, rounded up, for the wire.
///
/// Errors: as [`parse_size`].
pub(crate) fn parse_mib(option: &str, text: &str) -> Outcome<u32> {
    wire(option, text, BareUnit::Mebibytes, MIB)
}

/// In whole GiB, rounded up, for the wire.
///
/// Errors: as [`parse_size`].
pub(crate) fn parse_gib(option: &str, text: &str) -> Outcome<u32> {
    wire(option, text, BareUnit::Gibibytes, 1024 * MIB)
}

fn wire(option: &str, text: &str, bare: BareUnit, unit: u64) -> Outcome<u32> {
    let bytes = parse_size(option, text, bare)?;
    u32::try_from(bytes.div_ceil(unit)).map_err(|_| Failure::usage("cli/bad-size", format!("{option} {text} is too large"), "ask for less"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn reads_the_usual_spellings() {
        for (text, mib) in [("2G", 2048), ("1536M", 1536), ("512", 512), ("1GiB", 1024), ("1T", 1 << 20), (" 3gb ", 3072)] {
            assert_eq!(parse_mib("--memory", text).unwrap(), mib, "{text}");
        }
        assert_eq!(parse_gib("--disk", "20").unwrap(), 20);
        assert_eq!(parse_gib("--disk", "1500M").unwrap(), 2);
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "G", "-1", "0", "1.5G", "2X", "99999999999999T"] {
            let failure = parse_size("--memory", text, BareUnit::Mebibytes).unwrap_err();
            assert_eq!((failure.report.code.as_str(), failure.exit), ("cli/bad-size", 2), "{text}");
        }
    }
}
