//! Genuine SGX quotes with Intel's collateral, and damaged ones. The clock is pinned.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeSet;

use dstack_attestation::{
    Check, DebugRule, Endorsements, Fault, Link, Platform, Policy, QuoteCollateral, QuoteError, Reason, SgxVerifier, TrustAnchors,
    UnverifiedQuote, UnverifiedSgxQuote, VerifiedPlatform, Verifier, VerifyError,
};
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/sgx/");

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    quote: String,
    collateral: String,
    time: u64,
    verdict: String,
    tcb_status: Option<String>,
    advisory_ids: Option<Vec<String>>,
    reason: Option<String>,
    refusal: Option<String>,
}

impl Case {
    fn quote(&self) -> Vec<u8> {
        std::fs::read(format!("{DATA}{}", self.quote)).unwrap()
    }

    fn endorsements(&self) -> Endorsements {
        QuoteCollateral::parse_json(&std::fs::read_to_string(format!("{DATA}{}", self.collateral)).unwrap()).unwrap().into()
    }

    fn verify(&self, policy: Policy) -> Result<VerifiedPlatform, VerifyError> {
        let verifier = Verifier::new(TrustAnchors::hardware(), policy);
        Ok(verifier.verify_platform(&SgxVerifier, &self.quote(), &self.endorsements(), self.time, None)?.0)
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(format!("{DATA}cases.json")).unwrap()).unwrap()
}

fn must_accepted() -> Case {
    cases().into_iter().find(|case| case.verdict == "accept").unwrap()
}

fn link_of(error: &VerifyError) -> (Link, Fault) {
    match &*error.reason {
        Reason::Signature { link, fault, .. } => (*link, *fault),
        other => panic!("{other}"),
    }
}

#[test]
fn verdicts_statuses_and_advisories_are_those_of_the_reference_tools() {
    for case in cases() {
        let result = case.verify(Policy::report_only());
        if case.verdict == "reject" {
            let error = result.map(|_| ()).unwrap_err();
            match &case.refusal {
                Some(refusal) => {
                    let (link, fault) = link_of(&error);
                    assert_eq!(format!("{link:?}/{fault:?}"), *refusal, "{}: {error}", case.id);
                }
                None => {
                    assert!(case.reason.as_ref().unwrap().contains("Debug mode") && *error.reason == Reason::Debug, "{}: {error}", case.id)
                }
            }
            continue;
        }
        let verified = result.unwrap_or_else(|error| panic!("{}: {error}", case.id));
        assert_eq!(verified.tcb_status().map(|status| status.to_string()), case.tcb_status, "{}", case.id);
        let advisories: BTreeSet<String> = verified.advisory_ids().iter().cloned().collect();
        assert_eq!(advisories, case.advisory_ids.unwrap_or_default().into_iter().collect(), "{}", case.id);
        assert_eq!((verified.platform(), verified.debug()), (Platform::Sgx, Some(false)));
        assert_eq!((verified.register("mr_enclave").unwrap().len(), verified.report_data().len()), (32, 64));
        assert!(verified.facts().iter().any(|fact| fact.name == "fmspc" && case.collateral.contains(&fact.value)), "{}", case.id);
    }
}

#[test]
fn debug_enclaves_are_refused_whatever_the_policy() {
    let case = cases().into_iter().find(|case| case.reason.as_ref().is_some_and(|reason| reason.contains("Debug mode"))).unwrap();

    let error = case.verify(Policy { debug: DebugRule::Reported, ..Policy::report_only() }).map(|_| ()).unwrap_err();

    assert_eq!((error.check, &*error.reason), (Check::Debug, &Reason::Debug));
    assert!(error.report.passed(Check::QuoteSignature));
}

#[test]
fn report_data_of_another_challenge_is_refused() {
    let case = must_accepted();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let mut challenge = UnverifiedSgxQuote::parse(&case.quote()).unwrap().fields().report_data;
    let verify = |challenge: &[u8]| {
        verifier
            .verify_platform(&SgxVerifier, &case.quote(), &case.endorsements(), case.time, Some(challenge))
            .map(|_| ())
            .map_err(|error| error.check)
    };

    assert_eq!(verify(&challenge), Ok(()));
    challenge[63] ^= 1;
    assert_eq!(verify(&challenge), Err(Check::ReportData));
}

#[test]
fn kinds_of_quotes_are_told_apart() {
    let sgx = must_accepted().quote();

    assert!(matches!(UnverifiedQuote::parse(&sgx).unwrap_err(), QuoteError::OtherKind { version: 3, tee_type: 0, expected: "TDX" }));
    // Headers and reports of one kind before the signatures of the other: all of it decodes.
    let tdx = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/tdx/quotes/f1c8503301126c30.bin")).unwrap();
    let sgx_of_version_4 = [&tdx[..4], &[0; 4], &tdx[8..48], &sgx[48..432], &tdx[632..]].concat();
    let error = UnverifiedSgxQuote::parse(&sgx_of_version_4).unwrap_err();
    assert_eq!(error, QuoteError::OtherKind { version: 4, tee_type: 0, expected: "SGX version 3" });
    assert!(UnverifiedSgxQuote::parse(&tdx).is_err());
}

#[test]
fn quote_names_the_collateral_it_needs() {
    for case in cases().into_iter().filter(|case| case.verdict == "accept") {
        let chain = UnverifiedSgxQuote::parse(&case.quote()).unwrap().pck_chain().unwrap();

        let named = format!("collateral/{}-sgx-{}-", hex::encode(chain.fmspc().unwrap()), chain.issuer().unwrap().as_str());
        assert!(case.collateral.starts_with(&named), "{}: {named}", case.id);
        assert_eq!(chain.last().unwrap(), include_bytes!("../roots/intel-sgx-root-ca.der"));
    }
}

#[test]
fn nothing_is_believed_without_papers_or_without_a_root() {
    let case = must_accepted();
    let verify = |anchors: TrustAnchors, endorsements: &Endorsements| {
        let verifier = Verifier::new(anchors, Policy::report_only());
        link_of(&verifier.verify_platform(&SgxVerifier, &case.quote(), endorsements, case.time, None).map(|_| ()).unwrap_err())
    };

    assert_eq!(verify(TrustAnchors::hardware(), &Endorsements::default()), (Link::Endorsements, Fault::Missing));
    let without = TrustAnchors::hardware().replace(dstack_attestation::Vendor::Intel, []).unwrap();
    assert_eq!(verify(without, &case.endorsements()), (Link::CertificateChain, Fault::Missing));
    let amd = include_bytes!("../roots/amd-ark-milan.der").to_vec();
    let other = TrustAnchors::hardware().replace(dstack_attestation::Vendor::Intel, [amd]).unwrap();
    assert_eq!(verify(other, &case.endorsements()), (Link::CertificateChain, Fault::OtherRoot));
}
