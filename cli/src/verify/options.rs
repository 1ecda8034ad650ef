//! The command line, checked: what to trust, what to expect, and what came in files.

use std::{
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use dstack_attestation::{Platform, TrustAnchors, Vendor, parse_certificates};
use dstack_event_log::{Event, parse_events};
use dstack_verdict::{Challenge, ChallengeField, MAX_INPUT_BYTES, parse_hex};
use rand_core::{OsRng, RngCore as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    args::VerifyArgs,
    failure::{Failure, Outcome},
};

/// Bytes of a file that a flag names; the contents are judged later.
#[derive(Debug)]
pub(super) struct Given {
    /// `--collateral`.
    pub collateral: Option<Vec<u8>>,
    /// `--chain`.
    pub chain: Vec<Vec<u8>>,
    /// `--event-log`.
    pub event_log: Option<Vec<u8>>,
    /// `--ccel`.
    pub ccel: Option<Vec<u8>>,
    /// `--root`, one certificate, DER.
    pub root: Option<Vec<u8>>,
    /// `--nonce` or `--report-data`.
    pub challenge: Option<Challenge>,
    /// Unix seconds, `--at` or now.
    pub now: u64,
}

impl Given {
    /// Reads what the flags name.
    ///
    /// Errors: a value or a file that cannot be read, or a root that is no certificate: wrong usage.
    pub(super) fn read(args: &VerifyArgs) -> Outcome<Self> {
        let optional = |path: &Option<std::path::PathBuf>| path.as_deref().map(read_file).transpose();
        let challenge = match (&args.nonce, &args.report_data) {
            (Some(text), _) => Some(challenge("nonce", text, ChallengeField::Nonce)?),
            (None, Some(text)) => Some(challenge("report-data", text, ChallengeField::ReportData)?),
            (None, None) => None,
        };
        Ok(Self {
            collateral: optional(&args.collateral)?,
            chain: args.chain.iter().map(|path| read_file(path)).collect::<Outcome<_>>()?,
            event_log: optional(&args.event_log)?,
            ccel: optional(&args.ccel)?,
            root: args.root.as_deref().map(root).transpose()?,
            challenge,
            now: args.at.as_deref().map_or_else(|| Ok(now()), moment)?,
        })
    }

    /// The events of `--event-log`.
    ///
    /// Errors: not a log.
    pub(super) fn events(&self) -> Result<Option<Vec<Event>>, String> {
        let Some(bytes) = &self.event_log else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(|_| "the event log is not text".to_owned())?;
        parse_events(text).map(Some).map_err(|error| format!("the event log is malformed: {error}"))
    }
}

/// `anchors` with the root of `--root` in place of the vendor's; under any other root than the vendor's own the verdict is SIMULATED.
///
/// Errors: the root is unusable.
pub(super) fn replace_root(anchors: TrustAnchors, platform: Platform, root: &[u8]) -> Outcome<TrustAnchors> {
    let vendor = platform.vendor().unwrap_or(Vendor::Google);
    anchors
        .replace(vendor, [root.to_vec()])
        .map_err(|error| Failure::usage("verify/bad-root", format!("--root: {error}"), "give one certificate"))
}

/// 32 random bytes.
#[must_use]
pub(super) fn fresh_challenge() -> Challenge {
    let mut bytes = vec![0; 32];
    OsRng.fill_bytes(&mut bytes);
    Challenge { bytes, field: ChallengeField::Nonce, is_fresh: true }
}

fn challenge(flag: &str, text: &str, field: ChallengeField) -> Outcome<Challenge> {
    match parse_hex(text) {
        Some(bytes) if (1..=64).contains(&bytes.len()) => Ok(Challenge { bytes, field, is_fresh: false }),
        _ => Err(Failure::usage(&format!("verify/bad-{flag}"), format!("`{text}` is no value for --{flag}"), "give 1 to 64 bytes in hex")),
    }
}

fn moment(text: &str) -> Outcome<u64> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|time| u64::try_from(time.unix_timestamp()).ok());
    parsed.ok_or_else(|| {
        Failure::usage("verify/bad-time", format!("`{text}` is no time for --at"), "write it like 2026-08-28T05:21:19Z, not before 1970")
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn root(path: &Path) -> Outcome<Vec<u8>> {
    let certificates = parse_certificates(&read_file(path)?).unwrap_or_default();
    match <[Vec<u8>; 1]>::try_from(certificates) {
        Ok([der]) => Ok(der),
        Err(_) => {
            Err(Failure::usage("verify/bad-root", format!("{} is not one certificate", path.display()), "give one certificate, PEM or DER"))
        }
    }
}

/// A file of at most [`MAX_INPUT_BYTES`] and one more, so that longer ones are noticed; `-` is stdin.
///
/// Errors: unreadable.
pub(super) fn read_file(path: &Path) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_INPUT_BYTES as u64 + 1;
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    result.map_err(|error| Failure::io("reading", path, &error).with_exit(crate::failure::EXIT_USAGE))?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_padded_on_the_right() {
        let challenge = challenge("nonce", "0xABcd", ChallengeField::Nonce).unwrap();

        assert_eq!(challenge.report_data().get(..3).unwrap(), [0xab, 0xcd, 0]);
    }

    #[test]
    fn too_long_empty_and_no_hex_are_wrong_usage() {
        for text in ["", "xyz", "abc", &"00".repeat(65)] {
            assert_eq!(challenge("nonce", text, ChallengeField::Nonce).unwrap_err().exit, 2, "{text}");
        }
    }

    #[test]
    fn fresh_challenges_differ() {
        assert_ne!(fresh_challenge(), fresh_challenge());
    }

    #[test]
    fn moments_of_other_zones_are_the_same_second() {
        assert_eq!(moment("2026-08-28T05:21:19Z").unwrap(), 1_787_894_479);
        assert_eq!(moment("2026-08-28T07:21:19+02:00").unwrap(), 1_787_894_479);
        for text in ["", "yesterday", "2026-08-28", "1969-01-01T00:00:00Z"] {
            assert_eq!(moment(text).unwrap_err().exit, 2, "{text}");
        }
    }
}
