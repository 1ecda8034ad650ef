//! Quotes and papers under a root of their own, each with one thing wrong: each is refused for that thing, and the rest is accepted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

use dstack_attestation::{
    Endorsements, Policy, QuoteCollateral, Reason, SgxVerifier, TdxVerifier, TrustAnchors, Vendor, Verifier, VerifyError,
};
use serde::Deserialize;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/synthetic/");
/// TEE type of a quote's header.
const TDX: &[u8] = &[0x81, 0, 0, 0];

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    quote: String,
    collateral: String,
    time: u64,
    verdict: String,
    #[serde(default)]
    refused_at: String,
}

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&must_read("cases.json")).unwrap()
}

impl Case {
    fn verify(&self, anchors: &TrustAnchors) -> Result<(), VerifyError> {
        let verifier = Verifier::new(anchors.clone(), Policy::report_only());
        let collateral = QuoteCollateral::parse_json(&String::from_utf8(must_read(&self.collateral)).unwrap()).unwrap();
        let (quote, endorsements) = (must_read(&self.quote), Endorsements::from(collateral));
        let verified = if quote.get(4..8) == Some(TDX) {
            verifier.verify_platform(&TdxVerifier, &quote, &endorsements, self.time, None)
        } else {
            verifier.verify_platform(&SgxVerifier, &quote, &endorsements, self.time, None)
        };
        verified.map(|_| ())
    }
}

fn own_root() -> TrustAnchors {
    TrustAnchors::hardware().replace(Vendor::Intel, [must_read("root_ca.der")]).unwrap()
}

/// The link that failed, or the check where every link holds.
fn refused_at(error: &VerifyError) -> String {
    match &*error.reason {
        Reason::Signature { link, .. } => link.to_string(),
        _ => error.check.to_string(),
    }
}

#[test]
fn each_case_gets_its_verdict_and_each_refusal_its_own_reason() {
    let (mut accepted, mut refused) = (0, 0);
    for case in cases() {
        match case.verify(&own_root()) {
            Ok(()) => {
                assert_eq!(case.verdict, "accept", "{}", case.id);
                accepted += 1;
            }
            Err(error) => {
                assert_eq!((case.verdict.as_str(), refused_at(&error)), ("reject", case.refused_at.clone()), "{}: {error}", case.id);
                refused += 1;
            }
        }
    }
    assert_eq!((accepted, refused), (5, 28));
}

#[test]
fn none_of_them_holds_under_intels_root() {
    for case in cases() {
        assert!(case.verify(&TrustAnchors::hardware()).is_err(), "{}", case.id);
    }
}
