#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::Path;

use dstack_manifest::{AppId, ComposeHash, Digest32, InstanceId, OsImageHash};

use super::*;

fn list() -> AllowList {
    let text = format!(
        "version = 1\ntcb_statuses = [\"UpToDate\"]\nrejected_advisories = [\"INTEL-SA-2\"]\n[[os_images]]\nhash = \"{os}\"\n\
         [[apps]]\napp_id = \"{app}\"\ncompose_hashes = [\"{compose}\"]\ndevices = [\"{device}\"]\n\
         [kms]\nmr_aggregated = [\"{mr}\"]\ndevices = [\"{device}\"]\n",
        os = hex::encode([1; 32]),
        app = hex::encode([2; 20]),
        compose = hex::encode([3; 32]),
        device = hex::encode([4; 32]),
        mr = hex::encode([5; 32]),
    );
    AllowList::parse(&text, Path::new("allow.toml")).unwrap()
}

fn facts() -> BootFacts {
    BootFacts {
        app_id: Some(AppId::new([2; 20])),
        instance_id: InstanceId::NONE,
        compose_hash: Some(ComposeHash::new([3; 32])),
        os_image_hash: Some(OsImageHash::new([1; 32])),
        is_identity_complete: true,
        is_after_boot: false,
        mr_aggregated: Some(Digest32::new([5; 32])),
        mr_system: Digest32::new([6; 32]),
        key_provider: Vec::new(),
        tee_variant: "dstack-tdx".into(),
        device_id: Digest32::new([4; 32]),
        tcb_status: "UpToDate".into(),
        advisory_ids: vec!["INTEL-SA-1".into()],
        is_simulated: false,
        evidence_age_seconds: None,
    }
}

#[test]
fn allows_what_is_listed() {
    assert_eq!(list().decide(Subject::App, &facts()), Ok(()));
    assert_eq!(list().decide(Subject::Kms, &facts()), Ok(()));
}

/// Each fact flipped by itself is denied with its own code.
#[test]
fn denies_each_single_deviation() {
    type Deviation = fn(&mut BootFacts);
    let deviations: [(Deviation, &str); 12] = [
        (|f| f.is_simulated = true, "kms/simulated-not-allowed"),
        (|f| f.tee_variant = "dstack-other".into(), "kms/tee-variant-not-allowed"),
        (|f| f.tcb_status = "OutOfDate".into(), "kms/tcb-status-not-allowed"),
        (|f| f.advisory_ids.push("INTEL-SA-2".into()), "kms/advisory-rejected"),
        (|f| f.os_image_hash = None, "kms/os-image-unknown"),
        (|f| f.os_image_hash = Some(OsImageHash::new([9; 32])), "kms/os-image-not-allowed"),
        (|f| f.app_id = None, "kms/no-application"),
        (|f| f.compose_hash = None, "kms/no-application"),
        (|f| f.is_identity_complete = false, "kms/boot-incomplete"),
        (|f| f.is_after_boot = true, "kms/after-boot"),
        (|f| f.app_id = Some(AppId::new([9; 20])), "kms/app-not-allowed"),
        (|f| f.compose_hash = Some(ComposeHash::new([9; 32])), "kms/compose-hash-not-allowed"),
    ];
    for (deviate, code) in deviations {
        let mut facts = facts();
        deviate(&mut facts);

        let denial = list().decide(Subject::App, &facts).unwrap_err();

        assert_eq!(dstack_api::UserFacing::code(&denial), code);
        assert!(!dstack_api::UserFacing::fix(&denial).is_empty());
        assert!(denial.for_attested_caller().message.starts_with("Boot denied: "));
    }
    let mut elsewhere = facts();
    elsewhere.device_id = Digest32::new([9; 32]);
    assert_eq!(list().decide(Subject::Certificate, &elsewhere), Err(Denial::Device { device_id: Digest32::new([9; 32]) }));
    assert_eq!(list().decide(Subject::App, &elsewhere), Err(Denial::Device { device_id: Digest32::new([9; 32]) }));
    assert_eq!(list().decide(Subject::Kms, &elsewhere), Err(Denial::Device { device_id: Digest32::new([9; 32]) }));
}

#[test]
fn simulated_evidence_needs_the_danger_setting() {
    let mut list = list();
    list.allow_simulated = true;
    let mut simulated = facts();
    simulated.is_simulated = true;

    assert_eq!(list.decide(Subject::App, &simulated), Ok(()));
}

#[test]
fn freshness_is_asked_for_only_where_the_list_says_so() {
    let mut list = list();
    let aged = |seconds| BootFacts { evidence_age_seconds: seconds, ..facts() };
    assert_eq!(list.decide(Subject::App, &aged(None)), Ok(()));
    list.max_evidence_age_seconds = Some(60);

    assert_eq!(list.decide(Subject::App, &aged(None)), Err(Denial::NotFresh));
    assert_eq!(list.decide(Subject::Kms, &aged(None)), Err(Denial::NotFresh));
    assert_eq!(list.decide(Subject::Certificate, &aged(None)), Ok(()));
    assert_eq!(list.decide(Subject::App, &aged(Some(61))), Err(Denial::TooOld { seconds: 61, max_seconds: 60 }));
    assert_eq!(list.decide(Subject::App, &aged(Some(60))), Ok(()));
}

#[test]
fn what_a_backend_says_is_for_the_operator_only() {
    let reason = "secret of the operator".to_owned();
    for denial in [Denial::Backend { reason: reason.clone() }, Denial::Unavailable { reason: reason.clone() }] {
        let told = denial.for_attested_caller();

        assert!(told.message.starts_with("Boot denied") && !told.message.contains(&reason) && !told.fix.contains("webhook"), "{told:?}");
        assert!(denial.to_string().contains(&reason));
    }
}

#[test]
fn any_device_is_any_device() {
    let mut list = list();
    list.apps.get_mut(&AppId::new([2; 20])).unwrap().devices = crate::Devices::Any;
    let mut elsewhere = facts();
    elsewhere.device_id = Digest32::new([9; 32]);

    assert_eq!(list.decide(Subject::App, &elsewhere), Ok(()));
}

#[test]
fn an_unlisted_kms_gets_nothing() {
    let mut other = facts();
    other.mr_aggregated = Some(Digest32::new([9; 32]));
    let mut without = list();
    without.kms = None;

    assert!(matches!(list().decide(Subject::Kms, &other), Err(Denial::KmsMeasurement { .. })));
    assert!(matches!(without.decide(Subject::Kms, &facts()), Err(Denial::KmsMeasurement { .. })));
    other.mr_aggregated = None;
    assert_eq!(list().decide(Subject::Kms, &other), Err(Denial::BootIncomplete));
}

/// What is explained is what is decided: the first denial is the one that counts.
#[test]
fn an_explanation_names_every_rule_and_agrees_with_the_decision() {
    let mut deviating = facts();
    deviating.tcb_status = "OutOfDate".into();
    deviating.device_id = Digest32::new([9; 32]);
    for subject in [Subject::App, Subject::Kms] {
        assert!(list().explain(subject, &facts()).iter().all(|outcome| outcome.denial.is_none()));

        let denials: Vec<_> = list().explain(subject, &deviating).into_iter().filter_map(|outcome| outcome.denial).collect();

        assert_eq!(denials.len(), 2, "{denials:?}");
        assert_eq!(list().decide(subject, &deviating).unwrap_err(), denials[0]);
    }
}

#[test]
fn strangers_learn_nothing() {
    let told = Denial::for_strangers();

    assert_eq!(told.code, "kms/denied");
    assert_eq!(told.message, "Boot denied");
}
