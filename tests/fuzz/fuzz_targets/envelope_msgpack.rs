//! Attestation envelope, version 1: what is accepted encodes to what was read.
#![no_main]

use dstack_attestation::Attestation;
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&0) {
        return;
    }
    let Ok(attestation) = Attestation::decode(data) else { return };
    assert_eq!(Attestation::decode(&attestation.encode()).ok().as_ref(), Some(&attestation));
    let stripped = attestation.stripped();
    assert_eq!(stripped.stripped(), stripped);
});
