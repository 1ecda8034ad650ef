//! Attestation envelope, version 0, of every platform: what is accepted encodes to what was read.
#![no_main]

use dstack_attestation::Envelope;
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(envelope) = Envelope::decode(&[&[0], data].concat()) else { return };
    if let Ok(bytes) = envelope.encode_v0() {
        assert_eq!(Envelope::decode(&bytes).ok().as_ref(), Some(&envelope));
    }
    assert_eq!(Envelope::decode(&envelope.encode()).ok().as_ref(), Some(&envelope));
    let _ = envelope.vm_config();
});
