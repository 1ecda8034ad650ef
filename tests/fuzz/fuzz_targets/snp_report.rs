//! SEV-SNP reports: any bytes parse or are refused, and no changed report verifies.
#![no_main]

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, TrustAnchors,
    sev_snp::{SevSnp, UnverifiedReport},
};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

macro_rules! testdata {
    ($name:literal) => {
        include_bytes!(concat!("../../../crates/attestation/tests/testdata/snp/", $name))
    };
}

const GENUINE: &[u8] = testdata!("reports/120d77b213c8868d.bin");
const KEY: &[u8] = testdata!("keys/vcek-3bbfb6ee.der");
/// Within the key certificate's dates.
const TIME: u64 = 1_685_733_823;
/// Bytes under the signature.
const SIGNED: usize = 0x2a0;

static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(TrustAnchors::hardware);
static ENDORSEMENTS: LazyLock<Endorsements> = LazyLock::new(|| {
    let endorsements = Endorsements { certificates: vec![KEY.to_vec()], ..Endorsements::default() };
    SevSnp.verify_report(GENUINE, &Context { anchors: &ANCHORS, endorsements: &endorsements, now: TIME }).expect("a genuine report");
    endorsements
});

fuzz_target!(|data: &[u8]| {
    let context = Context { anchors: &ANCHORS, endorsements: &ENDORSEMENTS, now: TIME };
    let Ok(report) = UnverifiedReport::parse(data) else { return };
    let _ = report.fields();
    let verified = SevSnp.verify_report(data, &context).is_ok();
    assert!(!verified || data.get(..SIGNED) == GENUINE.get(..SIGNED), "a changed report verifies");
});
