//! TDX quotes: any bytes parse or are refused, and no changed quote verifies.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{Endorsements, Policy, QuoteCollateral, TrustAnchors, UnverifiedQuote, Verifier};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

macro_rules! testdata {
    ($name:literal) => {
        concat!("../../../crates/attestation/tests/testdata/tdx/", $name)
    };
}

/// A genuine quote, collateral that fits it, the time at which both hold, and the bytes that are signed: header and TD report.
struct Genuine {
    quote: &'static [u8],
    collateral: &'static str,
    time: u64,
    signed: usize,
}

const GENUINE: [Genuine; 2] = [
    Genuine {
        quote: include_bytes!(testdata!("quotes/f1c8503301126c30.bin")),
        collateral: include_str!(testdata!("collateral/b0c06f000000-tdx-platform-20250313-e17.json")),
        time: 1_742_762_172,
        signed: 48 + 584,
    },
    Genuine {
        quote: include_bytes!(testdata!("quotes/cf77a6e91e48291d.bin")),
        collateral: include_str!(testdata!("collateral/90c06f000000-tdx-platform-20260112-e18.json")),
        time: 1_770_191_602,
        signed: 48 + 6 + 648,
    },
];

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(TrustAnchors::hardware(), Policy::report_only()));
static ENDORSEMENTS: LazyLock<Vec<Endorsements>> = LazyLock::new(|| {
    let parse = |genuine: &Genuine| QuoteCollateral::parse_json(genuine.collateral).expect("collateral").into();
    let endorsements: Vec<Endorsements> = GENUINE.iter().map(parse).collect();
    for (genuine, endorsements) in GENUINE.iter().zip(&endorsements) {
        VERIFIER.verify_quote(genuine.quote, endorsements, genuine.time).expect("a genuine quote");
    }
    endorsements
});

fuzz_target!(|data: &[u8]| {
    let Ok(quote) = UnverifiedQuote::parse(data) else { return };
    let _ = (quote.version(), quote.header_user_data(), quote.fields(), quote.fmspc(), quote.pck_issuer(), quote.pck_chain());
    for (genuine, endorsements) in GENUINE.iter().zip(&*ENDORSEMENTS) {
        let verified = VERIFIER.verify_quote(data, endorsements, genuine.time).is_ok();
        assert!(!verified || data.get(..genuine.signed) == genuine.quote.get(..genuine.signed), "a changed quote verifies");
    }
});
