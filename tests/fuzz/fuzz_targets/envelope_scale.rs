//! Attestation envelope, version 0: what is accepted encodes to what was read.
#![no_main]

use dstack_attestation::Attestation;
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(attestation) = Attestation::decode(&[&[0], data].concat()) else { return };
    if let Ok(bytes) = attestation.encode_v0() {
        assert_eq!(Attestation::decode(&bytes).ok().as_ref(), Some(&attestation));
    }
    assert_eq!(Attestation::decode(&attestation.encode()).ok().as_ref(), Some(&attestation));
});
