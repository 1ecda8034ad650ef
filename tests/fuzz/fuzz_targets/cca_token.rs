//! Arm CCA tokens: any bytes parse or are refused.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, TrustAnchors,
    cca::{ArmCca, UnverifiedToken},
};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::hardware);
static ENDORSEMENTS: LazyLock<Endorsements> = LazyLock::new(Endorsements::default);

fuzz_target!(|data: &[u8]| {
    let Ok(token) = UnverifiedToken::parse(data) else { return };
    let _ = (token.platform_claims(), token.realm_claims());
    let context = Context { anchors: &ANCHORS, endorsements: &ENDORSEMENTS, now: 0 };
    // No key of a platform is given.
    assert!(ArmCca.verify_token(data, &context).is_err());
});
