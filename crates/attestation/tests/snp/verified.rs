//! `VerifiedEvidence` of an SNP guest: one thing wrong at a time.

use dstack_attestation::{
    Check, CheckOutcome, Endorsements, GuestEvidence, ImageRule, MrScope, Policy, Reason, TcbStatus, TrustAnchors, VerifiedEvidence,
    Verifier, VerifyError,
    sev_snp::{self, GuestFault, HostDataError, LaunchMismatch, SnpEvidence},
};
use dstack_manifest::{InstanceId, OsImageHash};

use crate::cases::{CRATE, Case, dstack_vm, must_read, verifiable};

fn evidence() -> SnpEvidence {
    match GuestEvidence::decode(&must_read("dstack-vm.envelope.bin")).unwrap() {
        GuestEvidence::SevSnp(evidence) => evidence,
        other => panic!("{other:?}"),
    }
}

fn verify(policy: Policy, change: impl FnOnce(&mut SnpEvidence)) -> Result<VerifiedEvidence, VerifyError> {
    let mut evidence = evidence();
    change(&mut evidence);
    let expected = dstack_vm().must_field("report_data").try_into().unwrap();
    Verifier::new(TrustAnchors::hardware(), policy).verify_snp(&evidence, &Endorsements::default(), dstack_vm().time, Some(&expected))
}

fn refused(change: impl FnOnce(&mut SnpEvidence)) -> (Check, Reason) {
    let error = verify(Policy::default(), change).map(|_| ()).unwrap_err();
    (error.check, *error.reason)
}

#[test]
fn a_dstack_vm_is_verified_whole() {
    let verified = verify(Policy::default(), |_| ()).unwrap();

    let (claims, document) = (verified.claims(), verified.launch_document().unwrap());
    assert_eq!(claims.app_id.unwrap().to_string(), "86e59625be93207bc2351c4d1bba20037cec8e16");
    assert_eq!(claims.compose_hash, Some(document.compose_hash));
    assert_eq!(claims.instance_id, document.instance_id.unwrap_or(InstanceId::NONE));
    assert!(claims.boot_time_complete && claims.key_provider.is_none());
    assert_eq!(verified.tee_variant(), "dstack-amd-sev-snp");
    assert_eq!(verified.os_image_hash().unwrap().to_string(), "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352");
    let fields = verified.snp_fields().unwrap();
    for scope in [MrScope::BootTime, MrScope::Runtime] {
        assert_eq!(verified.mr_system(scope), sev_snp::mr_system(fields));
        assert_eq!(verified.mr_aggregated(scope), Some(sev_snp::mr_aggregated(fields)));
    }
    assert_eq!(Some(verified.device_id()), sev_snp::device_id(fields));
    assert_eq!(verified.report_data(), &fields.report_data);
    assert!([TcbStatus::UpToDate, TcbStatus::OutOfDate].contains(&verified.tcb_status()));
    assert!(verified.collateral_expires_at() > verified.verified_at() && !verified.is_simulated());
    assert!(verified.td_fields().is_none() && verified.event_log().is_none() && verified.fmspc().is_none());
    let made: Vec<Check> = verified.report().checks().iter().map(|(check, _)| *check).collect();
    for check in [Check::QuoteSignature, Check::GuestPolicy, Check::ReportData, Check::HostData, Check::Identity, Check::OsImage] {
        assert!(made.contains(&check) && verified.report().passed(check), "{check}");
    }
}

#[test]
fn rejects_another_challenge_and_another_claimed_one() {
    let anchors = Verifier::new(TrustAnchors::hardware(), Policy::default());
    let other = anchors.verify_snp(&evidence(), &Endorsements::default(), dstack_vm().time, Some(&[0; 64])).unwrap_err();

    assert_eq!((other.check, *other.reason), (Check::ReportData, Reason::ReportData));
    assert_eq!(refused(|evidence| evidence.claimed_report_data = Some([0; 64])), (Check::ReportData, Reason::ReportData));
}

#[test]
fn rejects_a_changed_report() {
    assert_eq!(refused(|evidence| evidence.report[0x50] ^= 1).0, Check::QuoteSignature);
    assert_eq!(refused(|evidence| evidence.report.truncate(1183)).0, Check::QuoteFormat);
    assert_eq!(refused(|evidence| evidence.certificates.clear()).0, Check::QuoteSignature);
}

#[test]
fn rejects_another_identity_than_the_bound_one() {
    let (check, reason) = refused(|evidence| evidence.mr_config = evidence.mr_config.replacen("86e5", "86e6", 1));
    assert!(matches!((check, reason), (Check::HostData, Reason::HostData(HostDataError::Differs { .. }))));

    let (check, reason) = refused(|evidence| evidence.app_compose = Some(b"{}".to_vec()));
    assert!(matches!((check, reason), (Check::Identity, Reason::AppCompose { .. })));
}

#[test]
fn rejects_an_image_that_is_not_the_measured_one() {
    let renamed = |evidence: &mut SnpEvidence| evidence.vm_config = evidence.vm_config.replacen("f69c8e50", "f69c8e51", 1);
    let (check, reason) = refused(renamed);
    assert!(matches!((check, reason), (Check::OsImage, Reason::Launch(LaunchMismatch::Document { .. }))));

    assert!(matches!(refused(|evidence| evidence.vm_config = "{".into()), (Check::OsImage, Reason::VmConfig { .. })));
    assert!(matches!(refused(|evidence| evidence.vm_config.clear()), (Check::OsImage, Reason::Launch(LaunchMismatch::NoImageHash))));
    let allowed = Policy { allowed_images: Some(vec![OsImageHash::new([1; 32])]), ..Policy::default() };
    let error = verify(allowed, |_| ()).unwrap_err();
    assert!(matches!((error.check, *error.reason), (Check::OsImage, Reason::ImageNotAllowed { .. })));
}

#[test]
fn an_image_that_cannot_be_checked_is_a_caveat_where_none_is_demanded() {
    let lenient = || Policy { image: ImageRule::WherePossible, ..Policy::default() };

    let verified = verify(lenient(), |evidence| evidence.vm_config.clear()).unwrap();

    assert_eq!(verified.os_image_hash(), None);
    assert!(matches!(verified.report().outcome(Check::OsImage), Some(CheckOutcome::NotChecked(_))));
    assert!(verify(lenient(), |evidence| evidence.vm_config = evidence.vm_config.replacen("f69c8e50", "f69c8e51", 1)).is_err());
}

#[test]
fn rejects_a_debug_guest_under_every_policy() {
    let case: Case = verifiable().into_iter().find(|case| case.debug).unwrap();
    let evidence = SnpEvidence { report: must_read(&case.report), certificates: case.chain(), ..SnpEvidence::default() };

    let error = Verifier::new(TrustAnchors::hardware(), Policy::report_only())
        .verify_snp(&evidence, &Endorsements::default(), case.time, None)
        .unwrap_err();

    assert_eq!((error.check, *error.reason), (Check::GuestPolicy, Reason::GuestPolicy(GuestFault::Debug)));
    let strict = Verifier::new(TrustAnchors::hardware(), Policy::default());
    assert_eq!(strict.verify_snp(&evidence, &Endorsements::default(), case.time, None).unwrap_err().check, Check::Debug);
}

#[test]
fn rejects_a_platform_that_the_policy_does_not_name() {
    let tdx_only = Policy { platforms: Some(vec![dstack_attestation::Platform::Tdx]), ..Policy::default() };

    assert_eq!(verify(tdx_only, |_| ()).unwrap_err().check, Check::Platform);
}

#[test]
fn envelopes_of_other_platforms_are_no_guests() {
    let tdx = std::fs::read(format!("{CRATE}/tests/testdata/envelopes/guest-agent-attestation.bin")).unwrap();
    assert!(matches!(GuestEvidence::decode(&tdx), Ok(GuestEvidence::Td(_))));
    let gcp = std::fs::read(format!("{CRATE}/tests/testdata/tpm/gcp-attestation-1.bin")).unwrap();
    assert!(GuestEvidence::decode(&gcp).unwrap_err().to_string().contains("gcp-tdx"));
    assert!(GuestEvidence::SevSnp(evidence()).into_td().is_err());
}

#[test]
fn another_configuration_replaces_nothing_else() {
    let GuestEvidence::SevSnp(other) = GuestEvidence::SevSnp(evidence()).with_vm_config("{}") else { panic!("another platform") };

    assert_eq!(other.vm_config, "{}");
    assert_eq!(SnpEvidence { vm_config: evidence().vm_config, ..other }, evidence());
}
