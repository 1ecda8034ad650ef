//! GPU evidence: an SPDM report under a genuine chain, and the JSON form.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, TrustAnchors,
    gpu::{GpuEvidence, NvidiaGpu},
};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

const CHAIN: &[u8] = include_bytes!("../../../crates/attestation/tests/testdata/gpu/hopper-chain.pem");

static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::hardware);
static ENDORSEMENTS: LazyLock<Endorsements> = LazyLock::new(Endorsements::default);

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = GpuEvidence::parse_json(text);
    }
    let Ok(evidence) = GpuEvidence::from_pem(data.to_vec(), CHAIN) else { return };
    let context = Context { anchors: &ANCHORS, endorsements: &ENDORSEMENTS, now: 0 };
    assert!(NvidiaGpu::default().verify_report(&evidence, &context).is_err());
});
