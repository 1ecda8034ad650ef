//! What a VM was launched for against what it measured, one difference at a time.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use serde_json::json;

use super::*;

const COMPOSE_HASH: ComposeHash = ComposeHash::new([0xc0; 32]);
const APP_ID: AppId = AppId::new([0xa0; 20]);

fn instance(byte: u8) -> InstanceId {
    InstanceId::try_from([byte; 20].as_slice()).unwrap()
}

fn provider(name: &str, id: &[u8]) -> Option<KeyProvider> {
    Some(KeyProvider { name: name.to_owned(), id: id.to_vec(), raw: Vec::new() })
}

fn claims() -> Claims {
    Claims {
        app_id: Some(APP_ID),
        compose_hash: Some(COMPOSE_HASH),
        instance_id: instance(9),
        key_provider: provider("kms", &[0xaa, 0xbb]),
        measured_os_image_hash: None,
        boot_time_complete: true,
    }
}

/// Of version 3, with these fields besides compose hash and version.
fn document(fields: serde_json::Value) -> String {
    let mut document = json!({"version": 3, "compose_hash": "c0".repeat(32), "key_provider": "kms"});
    document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    document.to_string()
}

fn agrees_with(claims: &Claims, fields: serde_json::Value) -> bool {
    let document = document(fields);
    match match_mr_config_id(&mr_config_id_v3(&document), claims, Some(&document)) {
        MrConfigIdMatch::Agrees(_) => true,
        MrConfigIdMatch::Differs => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn version_3_binds_the_instance_where_both_name_one() {
    let unnamed = Claims { instance_id: InstanceId::NONE, ..claims() };
    let of = |byte: &str| json!({"instance_id": byte.repeat(20)});

    assert!(agrees_with(&claims(), of("09")) && agrees_with(&claims(), json!({})));
    assert!(!agrees_with(&claims(), of("08")));
    assert!(agrees_with(&unnamed, of("09")) && agrees_with(&unnamed, json!({})), "nothing is measured yet");
}

#[test]
fn version_3_binds_what_it_names_of_app_and_key_provider() {
    let before_keys = Claims { key_provider: None, ..claims() };

    assert!(agrees_with(&claims(), json!({"app_id": "a0".repeat(20), "key_provider_id": "aabb"})));
    for other in [json!({"app_id": "a1".repeat(20)}), json!({"key_provider_id": "aabc"}), json!({"key_provider": "tpm"})] {
        assert!(!agrees_with(&claims(), other.clone()), "{other}");
    }
    assert!(agrees_with(&before_keys, json!({"key_provider": "tpm", "key_provider_id": "aabc"})), "nothing is measured yet");
    assert!(!agrees_with(&Claims { compose_hash: Some(ComposeHash::new([1; 32])), ..claims() }, json!({})));
}

#[test]
fn version_3_binds_the_very_bytes_of_its_document() {
    let bound = document(json!({}));
    let spaced = format!("{bound} ");

    assert_eq!(match_mr_config_id(&mr_config_id_v3(&bound), &claims(), Some(&spaced)), MrConfigIdMatch::Differs);
    assert!(matches!(match_mr_config_id(&mr_config_id_v3(&spaced), &claims(), Some(&spaced)), MrConfigIdMatch::Agrees(_)));
}

#[test]
fn identity_is_told_on_one_line() {
    assert_eq!(claims().to_string(), format!("app {}, compose hash {}", "a0".repeat(20), "c0".repeat(32)));
    let unnamed = Claims { app_id: None, compose_hash: None, ..claims() };
    assert_eq!(unnamed.to_string(), "no app id, no compose hash");
}

#[test]
fn each_kind_of_key_provider_has_its_number_in_version_2() {
    let matches = |kind, name: &str| {
        let claims = Claims { key_provider: provider(name, b"id"), ..claims() };
        match_mr_config_id(&mr_config_id_v2(&COMPOSE_HASH, &APP_ID, kind, b"id"), &claims, None)
    };
    let kinds = [
        (KeyProviderKind::None, "none"),
        (KeyProviderKind::Local, "local"),
        (KeyProviderKind::Local, "local-sgx"),
        (KeyProviderKind::Kms, "kms"),
        (KeyProviderKind::Tpm, "tpm"),
    ];
    for (kind, name) in kinds {
        assert!(matches!(matches(kind, name), MrConfigIdMatch::Agrees(_)), "{name}");
    }
    assert_eq!(matches(KeyProviderKind::Kms, "none"), MrConfigIdMatch::Differs);
    assert_eq!(matches(KeyProviderKind::None, "something else"), MrConfigIdMatch::Differs);
}
