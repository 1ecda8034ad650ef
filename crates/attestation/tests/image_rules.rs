//! The OS image of a genuine guest: one thing of its configuration wrong at a time.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Check, CheckOutcome, Endorsements, Evidence, ImageBindingError, ImageRule, Policy, QuoteCollateral, Reason, TrustAnchors,
    VerifiedEvidence, Verifier, VerifyError,
};
use serde_json::{Value, json};

const EVIDENCE: &str = include_str!("testdata/envelopes/tdx-lite-getquote.json");
const COLLATERAL: &str = include_str!("testdata/tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json");
const NOW: u64 = 1_782_172_800;

type Change = fn(&mut Value);

fn verify(image: ImageRule, change: impl FnOnce(&mut Value)) -> Result<VerifiedEvidence, VerifyError> {
    let evidence = Evidence::parse_json(EVIDENCE).unwrap();
    let mut config = serde_json::from_str(&evidence.vm_config).unwrap();
    change(&mut config);
    verify_text(image, evidence.with_vm_config(config.to_string()))
}

fn verify_text(image: ImageRule, evidence: Evidence) -> Result<VerifiedEvidence, VerifyError> {
    let endorsements = Endorsements::from(QuoteCollateral::parse_json(COLLATERAL).unwrap());
    let policy = Policy { image, ..Policy::report_only() };
    Verifier::new(TrustAnchors::hardware(), policy).verify(&evidence, &endorsements, NOW, None)
}

fn refused(change: impl FnOnce(&mut Value)) -> (Check, Reason) {
    let error = verify(ImageRule::WherePossible, change).map(|_| ()).unwrap_err();
    (error.check, *error.reason)
}

#[test]
fn the_unchanged_configuration_proves_the_image() {
    assert!(verify(ImageRule::WherePossible, |_| ()).unwrap().os_image_hash().is_some());
}

#[test]
fn rejects_an_image_whose_document_is_another() {
    let (check, reason) = refused(|config| config["os_image_hash"] = json!("11".repeat(32)));

    assert!(matches!((check, &reason), (Check::OsImage, Reason::ImageBinding(_))), "{reason:?}");
}

#[test]
fn rejects_a_machine_with_other_memory() {
    let (check, reason) = refused(|config| config["memory_size"] = json!(4_u64 << 30));

    assert!(matches!((check, &reason), (Check::OsImage, Reason::ImageRegisters { register: "RTMR0", .. })), "{reason:?}");
}

#[test]
fn rejects_a_machine_of_another_qemu() {
    let (check, reason) = refused(|config| config["qemu_version"] = json!("9.2.1"));

    assert!(matches!((check, &reason), (Check::OsImage, Reason::ImageRegisters { .. })), "{reason:?}");
}

/// The guest measured another image than the configuration names: its file's configuration was renewed later.
#[test]
fn rejects_a_measured_image_that_is_not_the_proven_one_where_an_image_is_demanded() {
    let error = verify(ImageRule::Required, |_| ()).map(|_| ()).unwrap_err();

    assert!(matches!((error.check, *error.reason), (Check::OsImageEvent, Reason::MeasuredImage { .. })));
}

#[test]
fn what_cannot_be_computed_is_a_caveat_or_a_refusal_as_the_policy_says() {
    let changes: [(&str, Change); 3] = [
        ("no image", |config| drop(config.as_object_mut().unwrap().remove("os_image_hash"))),
        ("no document", |config| drop(config.as_object_mut().unwrap().remove("tdx_measurement"))),
        ("a QEMU that is not known", |config| config["qemu_version"] = json!("7.2.0")),
    ];
    for (what, change) in changes {
        let lenient = verify(ImageRule::WherePossible, change).unwrap();
        assert!(matches!(lenient.report().outcome(Check::OsImage), Some(CheckOutcome::NotChecked(_))), "{what}");
        assert_eq!(lenient.os_image_hash(), None, "{what}");

        let strict = verify(ImageRule::Required, change).map(|_| ()).unwrap_err();
        let expected = match what {
            "no image" => matches!(*strict.reason, Reason::ImageBinding(ImageBindingError::NoImageHash)),
            "no document" => matches!(*strict.reason, Reason::ImageBinding(ImageBindingError::NoDocument { .. })),
            _ => matches!(*strict.reason, Reason::ImageReference { .. }),
        };
        assert!(strict.check == Check::OsImage && expected, "{what}: {strict}");
    }
    let malformed = Evidence::parse_json(EVIDENCE).unwrap().with_vm_config("{");
    let strict = verify_text(ImageRule::Required, malformed).map(|_| ()).unwrap_err();
    assert!(matches!(*strict.reason, Reason::VmConfig { .. }), "{strict}");
}
