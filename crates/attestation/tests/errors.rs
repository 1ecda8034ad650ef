//! What a reader of a refusal is told: a stable code, and what to do.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_api::UserFacing as _;
use dstack_attestation::{
    Check, CheckReport, Context, Endorsements, Fault, ImageBindingError, Link, Platform, PlatformVerifier, Policy, Reason, Refusal,
    TcbStatus, TdAttributeFault, TrustAnchors, VerifiedPlatform, Verifier, VerifyError,
    sev_snp::{GuestFault, HostDataError, LaunchMismatch},
};
use dstack_manifest::{ComposeHash, OsImageHash};

fn error(check: Check, reason: Reason) -> VerifyError {
    VerifyError { check, reason: Box::new(reason), report: Box::new(CheckReport::default()), anchor: None }
}

fn signature(fault: Fault) -> Reason {
    Reason::Signature { link: Link::CertificateChain, fault, detail: String::new() }
}

#[test]
fn codes_are_the_names_of_the_checks() {
    use Check::*;
    let checks = [
        QuoteFormat,
        QuoteSignature,
        TdAttributes,
        Debug,
        Platform,
        TcbPolicy,
        Freshness,
        ReportData,
        RuntimeLog,
        BootLog,
        Identity,
        MrConfigId,
        GuestPolicy,
        HostData,
        OsImage,
        OsImageEvent,
    ];
    for check in checks {
        assert_eq!(error(check, Reason::ReportData).code(), format!("attestation/{check}"));
    }
}

/// A platform of somebody else, whose verifier refuses everything at one link.
struct Refusing(Platform, Link);

impl PlatformVerifier for Refusing {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        self.0
    }

    fn verify(&self, _: &[u8], _: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        Err(Refusal { platform: self.0, link: self.1, fault: Fault::Forbidden, detail: "TD migration is enabled".to_owned() })
    }
}

#[test]
fn each_link_belongs_to_a_check_before_which_others_held() {
    use Check::{QuoteFormat, QuoteSignature, RuntimeLog};
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let refused = |platform, link| {
        let refusing = Refusing(platform, link);
        let error = verifier.verify_platform(&refusing, &[], &Endorsements::default(), 0, None).unwrap_err();
        let passed = error.report.checks().iter().map(|(check, _)| *check).collect::<Vec<_>>();
        (error.check, passed, *error.reason)
    };
    let links = [
        (Link::Format, QuoteFormat, vec![]),
        (Link::CertificateChain, QuoteSignature, vec![QuoteFormat]),
        (Link::Tcb, QuoteSignature, vec![QuoteFormat]),
        (Link::ReportData, Check::ReportData, vec![QuoteFormat]),
        (Link::EventLog, RuntimeLog, vec![QuoteFormat]),
        (Link::Attributes, Check::TdAttributes, vec![QuoteFormat, QuoteSignature]),
    ];

    for (link, check, passed) in links {
        let (found, held, reason) = refused(Platform::Tpm, link);
        assert_eq!((found, held), (check, passed), "{link}");
        assert!(matches!(reason, Reason::Signature { link: named, .. } if named == link), "{link}");
    }
    assert_eq!(refused(Platform::Tdx, Link::Attributes).2, TdAttributeFault::Migratable.into());
}

#[test]
fn each_cause_has_its_remedy() {
    let os_image_hash = OsImageHash::new([1; 32]);
    let app_compose = Reason::AppCompose { got: ComposeHash::new([1; 32]), measured: None };
    let remedies = [
        (signature(Fault::Expired), "this machine's clock"),
        (signature(Fault::NotYetValid), "this machine's clock"),
        (signature(Fault::OtherRoot), "[danger]"),
        (signature(Fault::UnknownTcb), "update the platform's firmware"),
        (Reason::TcbStatus { status: TcbStatus::OutOfDate }, "update the platform's firmware"),
        (Reason::Advisory { advisory: "INTEL-SA-1".to_owned() }, "update the platform's firmware"),
        (signature(Fault::OtherPlatform), "the collateral of the platform in the quote"),
        (Reason::CollateralAge { age: 2, maximum: 1 }, "fetch the collateral again"),
        (Reason::CollateralUndated { platform: Platform::Tpm }, "revocation list"),
        (Reason::EvidenceAge { age: 2, maximum: 1 }, "fresh evidence"),
        (Reason::EvidenceFromFuture { ahead: 1 }, "fresh evidence"),
        (Reason::NoTcbStatus { platform: Platform::Tpm }, "in the policy"),
        (Reason::TcbEvaluationNumber { number: 1, minimum: 2 }, "in the policy"),
        (Reason::Platform { platform: Platform::Tpm }, "in the policy"),
        (Reason::Machine { id: None }, "in the policy"),
        (Reason::ImageNotAllowed { os_image_hash }, "in the policy"),
        (Reason::Debug, "without debug mode"),
        (TdAttributeFault::Debug.into(), "with SEPT_VE_DISABLE"),
        (GuestFault::Debug.into(), "at privilege level 0"),
        (HostDataError::NotSet.into(), "send the mr_config document"),
        (LaunchMismatch::NoImageHash.into(), "a measurement document for SEV-SNP"),
        (Reason::ReportData, "over your own challenge"),
        (Reason::VmConfig { reason: String::new() }, "a measurement document"),
        (Reason::ImageBinding(ImageBindingError::NoImageHash), "a measurement document"),
        (Reason::AcpiTables { why: "" }, "accept unchecked ACPI tables"),
        (Reason::ImageReference { os_image_hash, reason: String::new() }, "QEMU version that can be measured"),
        (app_compose, "the application's owner"),
        (signature(Fault::Invalid), "do not trust the machine"),
        (Reason::MrConfigId, "do not trust the machine"),
    ];
    for (reason, words) in remedies {
        let fix = error(Check::QuoteSignature, reason.clone()).fix();
        assert!(fix.contains(words), "{reason:?}: {fix}");
    }
}
