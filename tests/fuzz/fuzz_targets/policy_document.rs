//! Policies as TOML.
#![no_main]

use dstack_attestation::Policy;
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Policy::from_toml(text);
});
