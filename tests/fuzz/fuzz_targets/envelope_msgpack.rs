//! Attestation envelope, version 1, of every platform: what is accepted encodes to what was read.
#![no_main]

use dstack_attestation::Envelope;
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&0) {
        return;
    }
    let Ok(envelope) = Envelope::decode(data) else { return };
    assert_eq!(Envelope::decode(&envelope.encode()).ok().as_ref(), Some(&envelope));
    let stripped = envelope.stripped();
    assert_eq!(stripped.clone().stripped(), stripped);
});
