//! Evidence of platforms that this crate cannot make: the results of their verifiers, filled in by hand.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::*;
use crate::{AnchorKind, CheckOutcome, Vendor};

const NOW: u64 = 1_000_000;

fn genuine(platform: Platform) -> VerifiedPlatform {
    VerifiedPlatform::new(platform, AnchorKind::BuiltIn { vendor: Vendor::Aws, name: "root" })
}

fn refused(policy: &Policy, evidence: &VerifiedPlatform) -> (Check, Reason) {
    let error = policy.appraise(evidence, NOW).unwrap_err();
    assert_eq!(error.anchor.as_ref(), Some(evidence.anchor()));
    (error.check, *error.reason)
}

#[test]
fn debug_mode_is_refused_unless_it_is_to_be_reported_and_on_intel_always() {
    let reporting = Policy { debug: DebugRule::Reported, ..Policy::default() };
    for platform in [Platform::SevSnp, Platform::NitroEnclave] {
        let evidence = VerifiedPlatform { debug: Some(true), ..genuine(platform) };
        assert_eq!(refused(&Policy::default(), &evidence), (Check::Debug, Reason::Debug));
        let report = reporting.appraise(&evidence, NOW).unwrap();
        assert!(matches!(report.outcome(Check::Debug), Some(CheckOutcome::NotChecked(_))));
    }
    let enclave = VerifiedPlatform { debug: Some(true), ..genuine(Platform::Sgx) };
    assert_eq!(refused(&reporting, &enclave), (Check::Debug, Reason::Debug));
    let silent = Policy::default().appraise(&genuine(Platform::Tpm), NOW).unwrap();
    assert!(matches!(silent.outcome(Check::Debug), Some(CheckOutcome::NotChecked(_))));
    let production = VerifiedPlatform { debug: Some(false), ..genuine(Platform::SevSnp) };
    assert!(Policy::default().appraise(&production, NOW).unwrap().passed(Check::Debug));
}

#[test]
fn age_is_that_of_dated_evidence_only() {
    let policy = Policy { max_evidence_age: Some(100), ..Policy::default() };
    let dated = |issued_at| VerifiedPlatform { issued_at: Some(issued_at), ..genuine(Platform::NitroEnclave) };

    assert!(policy.appraise(&dated(NOW - 100), NOW).unwrap().passed(Check::Freshness));
    assert_eq!(refused(&policy, &dated(NOW - 101)), (Check::Freshness, Reason::EvidenceAge { age: 101, maximum: 100 }));
    assert!(policy.appraise(&dated(NOW + CLOCK_SKEW_SECONDS), NOW).is_ok());
    assert_eq!(refused(&policy, &dated(NOW + 301)), (Check::Freshness, Reason::EvidenceFromFuture { ahead: 301 }));
    let undated = policy.appraise(&genuine(Platform::SevSnp), NOW).unwrap();
    assert!(matches!(undated.outcome(Check::Freshness), Some(CheckOutcome::NotChecked(_))));
    assert!(Policy::default().appraise(&dated(0), NOW).unwrap().outcome(Check::Freshness).is_none());
}

#[test]
fn papers_may_be_exactly_as_old_as_allowed() {
    let policy = Policy { max_collateral_age: Some(100), ..Policy::default() };
    let endorsed = |endorsed_at| VerifiedPlatform { endorsed_at: Some(endorsed_at), ..genuine(Platform::Sgx) };

    assert!(policy.appraise(&endorsed(NOW - 100), NOW).unwrap().passed(Check::Freshness));
    assert_eq!(refused(&policy, &endorsed(NOW - 101)), (Check::Freshness, Reason::CollateralAge { age: 101, maximum: 100 }));
}

#[test]
fn papers_without_a_date_are_refused_on_every_platform_where_their_age_matters() {
    let policy = Policy { max_collateral_age: Some(u64::MAX), ..Policy::default() };

    for platform in Platform::ALL {
        let undated = genuine(platform);
        assert_eq!(refused(&policy, &undated), (Check::Freshness, Reason::CollateralUndated { platform }));
        assert!(Policy::default().appraise(&undated, NOW).is_ok());
        let dated = VerifiedPlatform { endorsed_at: Some(0), ..genuine(platform) };
        assert!(policy.appraise(&dated, NOW).unwrap().passed(Check::Freshness));
    }
}

#[test]
fn platform_without_status_fails_where_one_is_demanded() {
    let evidence = genuine(Platform::NitroEnclave);

    assert_eq!(refused(&Policy::strict(), &evidence), (Check::TcbPolicy, Reason::NoTcbStatus { platform: Platform::NitroEnclave }));
    assert!(Policy::default().appraise(&evidence, NOW).unwrap().passed(Check::TcbPolicy));
}

#[test]
fn machine_is_named_raw_or_by_digest() {
    let evidence = VerifiedPlatform { hardware_id: Some(vec![7; 64]), ..genuine(Platform::SevSnp) };
    let with = |machine: Vec<u8>| Policy { machines: Some(vec![vec![1], machine]), ..Policy::default() };
    let digest: [u8; 32] = Sha256::digest([7; 64]).into();

    assert!(with(vec![7; 64]).appraise(&evidence, NOW).is_ok());
    assert!(with(digest.to_vec()).appraise(&evidence, NOW).unwrap().passed(Check::Platform));
    assert_eq!(refused(&with(vec![7; 63]), &evidence), (Check::Platform, Reason::Machine { id: Some(hex::encode(digest)) }));
    assert_eq!(refused(&with(digest.to_vec()), &genuine(Platform::SevSnp)), (Check::Platform, Reason::Machine { id: None }));
}

#[test]
fn advisories_are_refused_by_name_or_for_not_being_named() {
    let evidence = VerifiedPlatform { advisory_ids: vec!["INTEL-SA-1".into(), "INTEL-SA-2".into()], ..genuine(Platform::Sgx) };
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let accepting = |names: &[&str]| Policy { accepted_advisories: Some(list(names)), ..Policy::default() };
    let rejecting = |names: &[&str]| Policy { rejected_advisories: list(names), ..Policy::default() };
    let advisory = |name: &str| (Check::TcbPolicy, Reason::Advisory { advisory: name.to_owned() });

    assert!(accepting(&["intel-sa-2", "INTEL-SA-1"]).appraise(&evidence, NOW).is_ok());
    assert_eq!(refused(&accepting(&["INTEL-SA-1"]), &evidence), advisory("INTEL-SA-2"));
    assert_eq!(refused(&accepting(&[]), &evidence), advisory("INTEL-SA-1"));
    assert_eq!(refused(&rejecting(&["intel-sa-2"]), &evidence), advisory("INTEL-SA-2"));
    assert!(rejecting(&["INTEL-SA-3"]).appraise(&evidence, NOW).is_ok());
    assert!(accepting(&[]).appraise(&genuine(Platform::Sgx), NOW).is_ok());
}

#[test]
fn edition_of_the_papers_may_be_the_lowest_one() {
    let evidence = VerifiedPlatform { tcb_evaluation_data_number: Some(17), ..genuine(Platform::Sgx) };
    let minimum = |number| Policy { minimum_tcb_evaluation_number: Some(number), ..Policy::default() };

    assert!(minimum(17).appraise(&evidence, NOW).is_ok());
    assert_eq!(refused(&minimum(18), &evidence), (Check::TcbPolicy, Reason::TcbEvaluationNumber { number: 17, minimum: 18 }));
    assert!(minimum(18).appraise(&genuine(Platform::SevSnp), NOW).is_ok());
}
