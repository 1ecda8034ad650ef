//! The largest document of each kind is read, and one byte more is not looked at.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    CollateralError, Envelope, EnvelopeError, Evidence, EvidenceError, Policy, QuoteCollateral, QuoteError, UnverifiedQuote,
    cca::{CcaTokenError, UnverifiedToken},
    gpu::{GpuEvidence, GpuEvidenceError},
    nitro::{DocumentError, UnverifiedDocument},
};

/// `too_long`: whether so many bytes are refused for their number alone. `limit`: the most that are read.
fn holds_at(limit: usize, too_long: impl Fn(usize) -> bool) {
    assert_eq!([limit, limit + 1, limit + 2].map(too_long), [false, true, true], "{limit}");
}

#[test]
fn texts_are_bounded() {
    let spaces = |length: usize| " ".repeat(length);

    holds_at(
        4 << 20,
        |length| matches!(QuoteCollateral::parse_json(&spaces(length)), Err(CollateralError::TooLong { got }) if got == length),
    );
    holds_at(12 << 20, |length| matches!(Evidence::parse_json(&spaces(length)), Err(EvidenceError::TooLong { got }) if got == length));
    holds_at(4 << 20, |length| matches!(GpuEvidence::parse_json(&spaces(length)), Err(GpuEvidenceError::TooLong { got }) if got == length));
    holds_at(1 << 20, |length| Policy::from_toml(&spaces(length)).unwrap_err().problems[0].key.is_empty());
}

#[test]
fn bytes_are_bounded() {
    let bytes = |length: usize| vec![1; length];

    holds_at(10 << 20, |length| matches!(Envelope::decode(&bytes(length)), Err(EnvelopeError::TooLong { got }) if got == length));
    holds_at(128 << 10, |length| matches!(UnverifiedQuote::parse(&bytes(length)), Err(QuoteError::TooLong { got }) if got == length));
    holds_at(64 << 10, |length| matches!(UnverifiedDocument::parse(&bytes(length)), Err(DocumentError::TooLong { got }) if got == length));
    holds_at(64 << 10, |length| matches!(UnverifiedToken::parse(&bytes(length)), Err(CcaTokenError::TooLong { got }) if got == length));
}
