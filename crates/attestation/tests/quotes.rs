//! Genuine quotes with Intel's collateral, and single changes in them. The clock is pinned: all collateral is expired today or will be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

use std::collections::BTreeSet;

use dstack_attestation::{
    Check, CheckOutcome, Endorsements, Fault, Policy, QuoteCollateral, QuoteError, Reason, TcbStatus, TdAttributeFault, TdxVerifier,
    TrustAnchorError, TrustAnchors, UnverifiedQuote, VerifiedPlatform, Verifier, VerifyError,
};
use proptest::prelude::*;
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/tdx/");

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
        let text = std::fs::read_to_string(format!("{DATA}{}", self.collateral)).unwrap();
        QuoteCollateral::parse_json(&text).unwrap().into()
    }

    fn verify(&self, policy: Policy) -> Result<VerifiedPlatform, VerifyError> {
        verify_quote(policy, &self.quote(), &self.endorsements(), self.time)
    }
}

fn verify_quote(policy: Policy, quote: &[u8], endorsements: &Endorsements, time: u64) -> Result<VerifiedPlatform, VerifyError> {
    let verifier = Verifier::new(TrustAnchors::hardware(), policy);
    Ok(verifier.verify_platform(&TdxVerifier, quote, endorsements, time, None)?.0)
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(format!("{DATA}cases.json")).unwrap()).unwrap()
}

fn must_case(is: impl Fn(&Case) -> bool) -> Case {
    cases().into_iter().find(is).unwrap()
}

fn up_to_date() -> Case {
    must_case(|case| case.tcb_status.as_deref() == Some("UpToDate"))
}

#[test]
fn verdicts_statuses_and_advisories_are_those_of_the_reference_tools() {
    let cases = cases();
    assert!(cases.len() >= 40);
    for case in cases {
        let result = case.verify(Policy::report_only());
        if case.verdict == "reject" {
            let error = result.map(|_| ()).expect_err(&case.id);
            match (&*error.reason, &case.refusal) {
                (Reason::Signature { link, fault, .. }, Some(refusal)) => {
                    assert_eq!(format!("{link:?}/{fault:?}"), *refusal, "{}", case.id)
                }
                (Reason::TdAttributes(_), None) => {}
                (other, _) => panic!("{}: {other}", case.id),
            }
            continue;
        }
        let verified = result.unwrap_or_else(|error| panic!("{}: {error}", case.id));
        assert_eq!(Some(verified.tcb_status().unwrap().to_string()), case.tcb_status, "{}", case.id);
        let advisories: BTreeSet<String> = verified.advisory_ids().iter().cloned().collect();
        assert_eq!(advisories, case.advisory_ids.unwrap_or_default().into_iter().collect(), "{}", case.id);
        assert!(!verified.anchor().is_simulated());
    }
}

#[test]
fn genuine_quotes_of_unacceptable_tds_are_not_called_forged() {
    let expected = [("Debug mode", TdAttributeFault::Debug), ("SEPT_VE_DISABLE", TdAttributeFault::SeptVeEnabled)];
    for (words, fault) in expected {
        let case = must_case(|case| case.reason.as_ref().is_some_and(|reason| reason.contains(words)));

        let error = case.verify(Policy::report_only()).map(|_| ()).unwrap_err();

        assert_eq!(*error.reason, Reason::TdAttributes(fault), "{}", case.id);
        assert!(error.report.passed(Check::QuoteSignature));
    }
    let case = must_case(|case| case.reason.as_ref().is_some_and(|reason| reason.contains("MR service TD")));
    assert_eq!(case.verify(Policy::report_only()).map(|_| ()).unwrap_err().check, Check::TdAttributes);
}

#[test]
fn expired_early_and_unknown_are_told_apart() {
    let fault = |case: &Case, time: u64| match *verify_quote(Policy::report_only(), &case.quote(), &case.endorsements(), time)
        .map(|_| ())
        .unwrap_err()
        .reason
    {
        Reason::Signature { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let case = up_to_date();

    assert_eq!(fault(&case, case.time + 400 * 86_400), Fault::Expired);
    assert_eq!(fault(&case, case.time - 400 * 86_400), Fault::NotYetValid);
    let unknown = must_case(|case| case.reason.as_ref().is_some_and(|reason| reason.contains("No matching TCB level")));
    assert_eq!(fault(&unknown, unknown.time), Fault::UnknownTcb);
}

#[test]
fn policy_decides_about_status_and_advisories() {
    let case = must_case(|case| case.tcb_status.as_deref() == Some("OutOfDate"));

    let error = case.verify(Policy::strict()).map(|_| ()).unwrap_err();

    assert_eq!((error.check, *error.reason), (Check::TcbPolicy, Reason::TcbStatus { status: TcbStatus::OutOfDate }));
    let quote = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let quote = quote.verify_quote(&case.quote(), &case.endorsements(), case.time).unwrap();
    let advisories = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(advisories(quote.advisory_ids()), advisories(case.advisory_ids.as_ref().unwrap()));
    let advisory = case.advisory_ids.clone().unwrap().remove(0);
    let policy = Policy { rejected_advisories: vec![advisory.clone()], ..Policy::report_only() };
    assert_eq!(*case.verify(policy).map(|_| ()).unwrap_err().reason, Reason::Advisory { advisory });
}

#[test]
fn zero_padding_is_tolerated_and_other_bytes_are_not() {
    let case = up_to_date();
    let mut padded = case.quote();
    padded.resize(8000, 0);

    assert!(verify_quote(Policy::report_only(), &padded, &case.endorsements(), case.time).is_ok());
    padded.push(1);
    assert!(matches!(UnverifiedQuote::parse(&padded).unwrap_err(), QuoteError::TrailingBytes { .. }));
}

#[test]
fn quote_names_the_collateral_it_needs() {
    let case = up_to_date();

    let chain = UnverifiedQuote::parse(&case.quote()).unwrap().pck_chain().unwrap();

    let named = format!("collateral/{}-tdx-{}-", hex::encode(chain.fmspc().unwrap()), chain.issuer().unwrap().as_str());
    assert!(case.collateral.starts_with(&named), "{named}");
    assert_eq!((chain.len(), chain.last().unwrap().as_slice()), (3, include_bytes!("../roots/intel-sgx-root-ca.der").as_slice()));
}

#[test]
fn genuine_root_cannot_be_declared_simulated() {
    let genuine = include_bytes!("../roots/intel-sgx-root-ca.der").to_vec();

    assert_eq!(
        TrustAnchors::hardware().danger_simulated_root(genuine).unwrap_err(),
        TrustAnchorError::IsGenuine { name: "Intel SGX Root CA" }
    );
    assert_eq!(TrustAnchors::hardware().danger_simulated_root(vec![1]).unwrap_err(), TrustAnchorError::NotACertificate);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_change_of_a_signed_byte_goes_unnoticed(at in 0_usize..632, bit in 0_u8..8) {
        let case = up_to_date();
        let mut quote = case.quote();
        quote[at] ^= 1 << bit;

        prop_assert!(verify_quote(Policy::report_only(), &quote, &case.endorsements(), case.time).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(cut in 0_usize..5100, noise in proptest::collection::vec((0_usize..5000, any::<u8>()), 0..20)) {
        let case = up_to_date();
        let mut quote = case.quote();
        for (at, byte) in noise {
            if let Some(place) = quote.get_mut(at) {
                *place = byte;
            }
        }
        quote.truncate(cut);
        let _any_answer = verify_quote(Policy::report_only(), &quote, &case.endorsements(), case.time);
        if let Ok(quote) = UnverifiedQuote::parse(&quote) {
            let _any_answers = quote.pck_chain().map(|chain| (chain.fmspc(), chain.issuer()));
        }
    }
}

#[test]
fn the_report_names_the_form_of_the_quote_and_its_anchor() {
    let case = up_to_date();
    let version = UnverifiedQuote::parse(&case.quote()).unwrap().version();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());

    let (platform, report) = verifier.verify_platform(&TdxVerifier, &case.quote(), &case.endorsements(), case.time, None).unwrap();

    let passed = |text: String| Some(CheckOutcome::Passed(text));
    assert_eq!(report.outcome(Check::QuoteFormat).cloned(), passed(format!("TDX quote version {version}")));
    assert_eq!(report.outcome(Check::QuoteSignature).cloned(), passed(platform.anchor().to_string()));
    assert!(!report.passed(Check::ReportData), "nobody has compared it");
}

/// A genuine guest of an OS image whose measurement document came along: hardware, log, identity and image, all at once.
#[test]
fn genuine_guest_is_verified_with_its_os_image() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/envelopes/tdx-lite-getquote.json")).unwrap();
    let evidence = dstack_attestation::Evidence::parse_json(&text).unwrap();
    let case = must_case(|case| case.collateral.contains("90c06f000000-tdx-platform-20260608"));
    let verify = |policy| Verifier::new(TrustAnchors::hardware(), policy).verify(&evidence, &case.endorsements(), case.time, None);

    let verified = verify(Policy::report_only()).unwrap();

    assert!(!verified.is_simulated() && verified.acpi_tables_computed());
    assert_eq!(verified.os_image_hash().unwrap().to_string(), "e6f5cfec20c02e7b97baa213d0f718020b55e040172d90ccbcb946d56c8b09db");
    let refused = verify(Policy { allowed_images: Some(vec![]), ..Policy::report_only() }).map(|_| ()).unwrap_err();
    let os_image_hash = *verified.os_image_hash().unwrap();
    assert_eq!((refused.check, *refused.reason), (Check::OsImage, Reason::ImageNotAllowed { os_image_hash }));
    assert!(verify(Policy { allowed_images: Some(vec![os_image_hash]), ..Policy::report_only() }).is_ok());
    // The file's vm_config was renewed after the guest had measured the image under its pre-release hash.
    assert!(!verified.report().passed(Check::OsImageEvent));
    let strict = verify(Policy { accept_unchecked_acpi: false, ..Policy::default() }).map(|_| ()).unwrap_err();
    assert_eq!(strict.check, Check::OsImageEvent, "{strict}");
}

/// The same guest under a configuration whose VM has one vCPU more: image and memory agree, the tables are those of another VM.
#[test]
fn tables_of_no_known_machine_need_a_policy_that_accepts_them() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/envelopes/tdx-lite-getquote.json")).unwrap();
    let mut evidence = dstack_attestation::Evidence::parse_json(&text).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&evidence.vm_config).unwrap();
    config["cpu_count"] = (config["cpu_count"].as_u64().unwrap() + 1).into();
    evidence.vm_config = config.to_string();
    let case = must_case(|case| case.collateral.contains("90c06f000000-tdx-platform-20260608"));
    let verify = |policy| Verifier::new(TrustAnchors::hardware(), policy).verify(&evidence, &case.endorsements(), case.time, None);

    let reported = verify(Policy::report_only()).unwrap();

    assert!(reported.os_image_hash().is_some() && !reported.acpi_tables_computed());
    let strict = verify(Policy { accept_unchecked_acpi: true, ..Policy::default() }).map(|_| ()).unwrap_err();
    assert_eq!(strict.check, Check::OsImageEvent, "{strict}");
    let strict = verify(Policy { accept_unchecked_acpi: false, ..Policy::default() }).map(|_| ()).unwrap_err();
    assert_eq!((strict.check, *strict.reason), (Check::OsImage, Reason::AcpiTables { why: "the policy does not accept unchecked tables" }));
}
