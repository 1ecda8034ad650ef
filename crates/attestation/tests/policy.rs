//! Policy documents, and the appraisal of bare quotes under them.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{DebugRule, ImageRule, ModuleRule, Platform, Policy, PolicyError, TcbStatus};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../policy.example.toml");

fn problems(text: &str) -> Vec<(usize, String)> {
    let PolicyError { problems } = Policy::from_toml(text).unwrap_err();
    problems.into_iter().map(|problem| (problem.line, problem.key)).collect()
}

#[test]
fn example_sets_every_demand() {
    let policy = Policy::from_toml(EXAMPLE).unwrap();

    assert_eq!(policy.platforms, Some(vec![Platform::Tdx, Platform::SevSnp]));
    assert_eq!(policy.machines.as_ref().unwrap()[0].len(), 32);
    assert_eq!(policy.debug, DebugRule::Refused);
    assert_eq!(policy.accepted_tcb, Some(vec![TcbStatus::UpToDate, TcbStatus::SWHardeningNeeded]));
    assert_eq!(policy.accepted_tcb_of[&Platform::SevSnp], [TcbStatus::UpToDate, TcbStatus::OutOfDate]);
    assert_eq!(policy.minimum_tcb_evaluation_number, Some(17));
    assert_eq!(policy.rejected_advisories, ["INTEL-SA-00837"]);
    assert_eq!(policy.accepted_advisories, Some(vec!["INTEL-SA-00960".to_owned()]));
    assert_eq!((policy.max_collateral_age, policy.max_evidence_age), (Some(30 * 86_400), Some(3600)));
    assert_eq!((policy.image, policy.accept_unchecked_acpi), (ImageRule::Required, false));
    assert_eq!(policy.allowed_images.unwrap().len(), 1);
    assert_eq!((policy.mr_signer_seam, policy.service_tds.len()), (ModuleRule::Intel, 0));
}

#[test]
fn document_without_demands_is_the_default_policy() {
    assert_eq!(Policy::from_toml("version = 1").unwrap(), Policy::default());
}

#[test]
fn lists_may_be_empty_and_then_accept_nothing() {
    let policy = Policy::from_toml("version = 1\nplatforms = []\n[tcb]\naccepted = []\n[image]\nallowed = []").unwrap();

    assert_eq!((policy.platforms, policy.accepted_tcb, policy.allowed_images), (Some(vec![]), Some(vec![]), Some(vec![])));
}

#[test]
fn every_problem_is_reported_with_its_line_and_key() {
    let text = "version = 2\nplatforms = [\"tdx\", \"tdxx\", 3]\nmachine = []\nmachines = [\"zz\", \"\"]\ndebug = true\n[tcb]\naccepted = [\"Revoked\"]\nminimum_evaluation_number = -1\n[tcb.platform]\nsnp = []\ntdx = [\"Fine\"]\n[age]\nmax_collateral = \"30\"\nmax_evidence = \"99999999999999999999d\"\n[image]\nrequired = false\nallowed = [\"ab\"]\naccept_unchecked_acpi = \"yes\"\n[tdx]\nsept_ve_disable = false\nmr_signer_seam = \"me\"\nservice_tds = [\"00\"]\n[advisories]\nrejected = \"all\"\n";
    let expected = [
        (1, "version"),
        (2, "platforms[1]"),
        (2, "platforms[2]"),
        (3, "machine"),
        (4, "machines[0]"),
        (4, "machines[1]"),
        (5, "debug"),
        (7, "tcb.accepted[0]"),
        (8, "tcb.minimum_evaluation_number"),
        (10, "tcb.platform.snp"),
        (11, "tcb.platform.tdx[0]"),
        (13, "age.max_collateral"),
        (14, "age.max_evidence"),
        (17, "image.allowed"),
        (17, "image.allowed[0]"),
        (18, "image.accept_unchecked_acpi"),
        (20, "tdx.sept_ve_disable"),
        (21, "tdx.mr_signer_seam"),
        (22, "tdx.service_tds[0]"),
        (24, "advisories.rejected"),
    ];

    let mut found = problems(text);
    found.sort();

    assert_eq!(found, expected.map(|(line, key)| (line, key.to_owned())));
}

#[test]
fn documents_that_are_no_policy_are_refused() {
    assert_eq!(problems(""), [(1, "version".to_owned())]);
    assert_eq!(problems("version = 1\ntcb = 3"), [(2, "tcb".to_owned())]);
    assert_eq!(problems("version = 1\n= 3")[0].0, 2);
    assert_eq!(problems(&" ".repeat((1 << 20) + 1)), [(1, String::new())]);
    let text = Policy::from_toml("version = 1\nx = 1\ny = 2").unwrap_err().to_string();
    assert!(text.contains("line 2: x: unknown key") && text.contains("line 3: y: unknown key"), "{text}");
}

#[test]
fn each_rule_has_its_words() {
    let policy = |text: &str| Policy::from_toml(&format!("version = 1\n{text}")).unwrap();

    assert_eq!(["refuse", "report"].map(|word| policy(&format!("debug = \"{word}\"")).debug), [DebugRule::Refused, DebugRule::Reported]);
    let signers = ["intel", "endorsed"].map(|word| policy(&format!("[tdx]\nmr_signer_seam = \"{word}\"")).mr_signer_seam);
    assert_eq!(signers, [ModuleRule::Intel, ModuleRule::Endorsed]);
}

#[test]
fn zero_is_no_service_td() {
    let policy = |value: &str| Policy::from_toml(&format!("version = 1\n[tdx]\nservice_tds = [\"{value}\"]"));

    assert_eq!(policy(&"ab".repeat(48)).unwrap().service_tds, [[0xab; 48]]);
    assert!(policy(&"00".repeat(48)).is_err());
}

#[test]
fn durations_have_their_units() {
    let age = |text: &str| {
        Policy::from_toml(&format!("version = 1\n[age]\nmax_evidence = \"{text}\"")).ok().map(|policy| policy.max_evidence_age.unwrap())
    };

    assert_eq!([age("7s"), age("2m"), age("3h"), age("1d")], [Some(7), Some(120), Some(10_800), Some(86_400)]);
    assert_eq!([age("s"), age("-1s"), age("1 d"), age("1w"), age("")], [None; 5]);
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(text in ".{0,200}", at in 0_usize..3000, byte in any::<u8>()) {
        let _any_answer = Policy::from_toml(&text);
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        bytes[at % EXAMPLE.len()] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _any_answer = Policy::from_toml(&text);
        }
    }
}
