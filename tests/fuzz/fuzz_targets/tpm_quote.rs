//! TPM quotes: the attested structure, its signature, and the form of the envelope.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, TrustAnchors,
    tpm::{QuoteSignature, Quoted, Tpm, TpmQuote},
};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::hardware);
static ENDORSEMENTS: LazyLock<Endorsements> = LazyLock::new(Endorsements::default);

fuzz_target!(|data: &[u8]| {
    let _ = (Quoted::parse(data), QuoteSignature::parse(data));
    let Ok(quote) = TpmQuote::decode_scale(&mut &*data) else { return };
    // Before any certificate: even a genuine quote must not verify.
    let context = Context { anchors: &ANCHORS, endorsements: &ENDORSEMENTS, now: 0 };
    assert!(Tpm::default().verify_quote(&quote, &context).is_err());
});
