//! Evidence and collateral as JSON.
#![no_main]

use dstack_attestation::{Evidence, QuoteCollateral};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Evidence::parse_json(text);
    let _ = QuoteCollateral::parse_json(text);
});
