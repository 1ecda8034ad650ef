//! A dstack VM under SEV-SNP: what its evidence shows beyond a genuine report.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{ImageRule, Policy};
use dstack_manifest::OsImageHash;
use dstack_verdict::{Kind, Mark, Question, Subject, Verdict, Word, judge};

const ENVELOPE: &[u8] = include_bytes!("../../attestation/tests/testdata/snp/dstack-vm.envelope.bin");
const EARLY_ENVELOPE: &[u8] = include_bytes!("../../attestation/tests/testdata/envelopes/sev-snp-attestation.bin");
const VCEK: &[u8] = include_bytes!("../../attestation/tests/testdata/snp/keys/vcek-1b35b841.der");
const IMAGE: &str = "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352";
const NOW: u64 = 1_786_842_304;

fn image() -> OsImageHash {
    IMAGE.parse().unwrap()
}

fn open() -> Question {
    Question::open(NOW)
}

fn mark(verdict: &Verdict, name: &str) -> Option<Mark> {
    verdict.checks.iter().find(|line| line.name == name).map(|line| line.outcome)
}

/// Judges the envelope after `change` of its parts, under `question`.
fn judged(question: &Question, change: impl FnOnce(&mut dstack_attestation::sev_snp::SnpEvidence)) -> Verdict {
    let mut subject = Subject::recognise(ENVELOPE).unwrap();
    let Kind::SevSnp(evidence) = &mut subject.kind else { panic!("not of SEV-SNP") };
    change(evidence);
    judge(&subject, question, "test")
}

#[test]
fn app_and_image_of_a_genuine_vm_are_shown() {
    let verdict = judged(&open(), |_| {});

    assert_eq!(verdict.word, Word::VerifiedWithCaveats, "{}", verdict.reason);
    for name in ["certificate-chain", "attestation-key", "signature", "guest-policy", "host-data", "os-image"] {
        assert!(verdict.passed(name), "{name}");
    }
    assert_eq!(verdict.identity.os_image_hash, Some(image()));
    assert_eq!(verdict.identity.app_id.unwrap().to_string(), "86e59625be93207bc2351c4d1bba20037cec8e16");
}

#[test]
fn an_image_that_is_known_or_demanded_counts() {
    let mut question = open();
    question.expectations.os_images.insert(image(), "release 0.6".into());
    question.policy = Policy { image: ImageRule::Required, allowed_images: Some(vec![image()]), ..Policy::report_only() };
    let verdict = judged(&question, |_| {});
    assert!(verdict.passed("os-image-known") && verdict.passed("os-image"), "{:?}", verdict.checks);

    let other = OsImageHash::new([7; 32]);
    let mut question = open();
    question.expectations.os_images.insert(other, "another".into());
    assert_eq!(mark(&judged(&question, |_| {}), "os-image-known"), Some(Mark::Failed));
    let mut question = open();
    question.policy.allowed_images = Some(vec![other]);
    let verdict = judged(&question, |_| {});
    assert_eq!((verdict.word, mark(&verdict, "os-image")), (Word::NotVerified, Some(Mark::Failed)));
}

#[test]
fn a_vm_of_another_shape_or_document_is_refused() {
    let verdict = judged(&open(), |evidence| evidence.vm_config = evidence.vm_config.replace("\\\"vcpus\\\":2", "\\\"vcpus\\\":3"));
    assert_eq!(verdict.word, Word::NotVerified);
    assert!(verdict.reason.contains("it is the same image with 2 vCPUs"), "{}", verdict.reason);
    let verdict = judged(&open(), |evidence| evidence.mr_config = evidence.mr_config.replace("86e5", "86e6"));
    assert_eq!((verdict.word, mark(&verdict, "host-data")), (Word::NotVerified, Some(Mark::Failed)));
    let verdict = judged(&open(), |evidence| evidence.claimed_report_data = Some([0; 64]));
    assert_eq!(verdict.word, Word::NotVerified);
}

#[test]
fn missing_material_is_a_caveat_unless_an_image_is_demanded() {
    let mut question = open();
    question.endorsements.certificates.push(VCEK.to_vec());
    let early = Subject::recognise(EARLY_ENVELOPE).unwrap();

    let verdict = judge(&early, &question, "test");
    assert_eq!((verdict.word, mark(&verdict, "os-image")), (Word::VerifiedWithCaveats, Some(Mark::Unknown)), "{}", verdict.reason);

    question.policy.image = ImageRule::Required;
    let verdict = judge(&early, &question, "test");
    assert_eq!((verdict.word, mark(&verdict, "os-image")), (Word::NotVerified, Some(Mark::Failed)));
    let verdict = judged(&open(), |evidence| evidence.vm_config.clear());
    assert_eq!(mark(&verdict, "os-image"), Some(Mark::Unknown));
}

#[test]
fn another_kms_than_the_bound_one_is_refused() {
    let document: serde_json::Value = match &Subject::recognise(ENVELOPE).unwrap().kind {
        Kind::SevSnp(evidence) => serde_json::from_str(&evidence.mr_config).unwrap(),
        _ => panic!("not of SEV-SNP"),
    };
    let bound = document["key_provider_id"].as_str().map(|id| hex::decode(id).unwrap()).unwrap_or_default();
    let expecting = |key: Vec<u8>| {
        let mut question = open();
        question.expectations.kms = Some((key, "the test".to_owned()));
        judged(&question, |_| {})
    };

    let other = expecting(vec![1, 2, 3]);
    assert_eq!((other.word, mark(&other, "kms")), (Word::NotVerified, Some(Mark::Failed)));
    let same = expecting(bound);
    assert_eq!(mark(&same, "kms"), Some(Mark::Passed), "{}", same.reason);
}

#[test]
fn what_else_is_expected_of_the_vm_must_hold() {
    let failed = |name: &str, verdict: &Verdict| {
        assert_eq!((verdict.word, mark(verdict, name)), (Word::NotVerified, Some(Mark::Failed)), "{name}");
    };
    failed("claimed-report-data", &judged(&open(), |evidence| evidence.claimed_report_data = Some([0; 64])));
    failed("app-document", &judged(&open(), |evidence| evidence.app_compose = Some(b"{}".to_vec())));
    let mut question = open();
    question.expectations.app_id = Some("11".repeat(20).parse().unwrap());
    failed("app-expected", &judged(&question, |_| {}));
    let mut question = open();
    question.expectations.compose_hashes = vec!["11".repeat(32).parse().unwrap()];
    failed("compose-expected", &judged(&question, |_| {}));
}
