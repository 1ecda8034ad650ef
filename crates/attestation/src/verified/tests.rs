//! Verified evidence with a field that no genuine guest at hand has.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use crate::{Evidence, Policy, QuoteCollateral, TrustAnchors, Verifier};

const EVIDENCE: &str = include_str!("../../tests/testdata/envelopes/tdx-lite-getquote.json");
const COLLATERAL: &str = include_str!("../../tests/testdata/tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json");

#[test]
fn advisories_are_those_of_the_platform() {
    let endorsements = QuoteCollateral::parse_json(COLLATERAL).unwrap().into();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let mut verified = verifier.verify(&Evidence::parse_json(EVIDENCE).unwrap(), &endorsements, 1_782_172_800, None).unwrap();

    verified.platform.advisory_ids = vec!["INTEL-SA-00837".to_owned()];

    assert_eq!(verified.advisory_ids(), ["INTEL-SA-00837"]);
}
