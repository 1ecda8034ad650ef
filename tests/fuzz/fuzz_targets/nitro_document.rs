//! Nitro documents of enclaves and instances: any bytes parse or are refused, and no changed document verifies.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, TrustAnchors,
    nitro::{NitroEnclave, NitroTpm, UnverifiedDocument},
};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::hardware);
static ENDORSEMENTS: LazyLock<Endorsements> = LazyLock::new(Endorsements::default);

fuzz_target!(|data: &[u8]| {
    let Ok(document) = UnverifiedDocument::parse(data) else { return };
    let _ = (document.document().is_debug(), document.document().instance_id());
    // Before the first certificate of the vendor: even a genuine document must not verify.
    let context = Context { anchors: &ANCHORS, endorsements: &ENDORSEMENTS, now: 1 << 30 };
    assert!(NitroEnclave.verify_document(data, &context).is_err());
    assert!(NitroTpm.verify_document(data, &context).is_err());
});
