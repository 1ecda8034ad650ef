#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::*;

const MINIMAL: &str = r#"{"manifest_version":2,"name":"t","runner":"docker-compose","docker_compose_file":"services: {}\n"}"#;

fn refused(text: &str) -> AppComposeError {
    AppCompose::parse(text.as_bytes().to_vec()).unwrap_err()
}

/// Vector of the published SDKs for these exact bytes' canonical twin; here the bytes are hashed as they are.
#[test]
fn hashes_the_bytes_as_they_are() {
    let one = AppCompose::parse(MINIMAL.as_bytes().to_vec()).unwrap();
    let spaced = AppCompose::parse(format!(" {MINIMAL}").into_bytes()).unwrap();

    assert_eq!(one.document(), spaced.document());
    assert_ne!(one.compose_hash(), spaced.compose_hash());
    assert_eq!(one.raw(), MINIMAL.as_bytes());
}

#[test]
fn unknown_fields_are_ignored_and_defaults_follow_the_reference() {
    let compose = AppCompose::parse(MINIMAL.replace("\"name\"", "\"later\":[1],\"name\"").into_bytes()).unwrap();

    assert!(compose.document().secure_time && compose.document().public_tcbinfo);
    assert_eq!(compose.document().key_provider(), KeyProviderKind::None);
}

#[test]
fn older_selectors_choose_the_provider_and_the_new_one_wins() {
    let with = |extra: &str| {
        AppCompose::parse(MINIMAL.replace("\"name\"", &format!("{extra},\"name\"")).into_bytes()).unwrap().document().key_provider()
    };

    assert_eq!(with("\"kms_enabled\":true"), KeyProviderKind::Kms);
    assert_eq!(with("\"local_key_provider_enabled\":true"), KeyProviderKind::Local);
    assert_eq!(with("\"kms_enabled\":true,\"key_provider\":\"none\""), KeyProviderKind::None);
}

#[test]
fn manifest_versions_that_are_not_canonical_are_refused() {
    for bad in ["0", "3", "\"03\"", "\"+3\"", "\"3.0\"", "\"0\"", "1.5", "null", "\"4\""] {
        let text = MINIMAL.replace("\"manifest_version\":2", &format!("\"manifest_version\":{bad}"));
        assert!(AppCompose::parse(text.into_bytes()).is_err(), "{bad}");
    }
    assert!(AppCompose::parse(MINIMAL.replace(":2,", ":\"3\",").into_bytes()).is_ok());
}

#[test]
fn an_error_names_the_line_or_the_field() {
    assert!(matches!(refused("{\n \"manifest_version\": 2,\n nope"), AppComposeError::Syntax { line: 3, .. }));
    let no_file = MINIMAL.replace("\"services: {}\\n\"", "\"\"");
    assert!(matches!(refused(&no_file), AppComposeError::Field { field: "docker_compose_file", .. }));
}

#[test]
fn requirements_that_are_not_known_are_refused() {
    let text = MINIMAL.replace(":2,", ":\"3\",\"requirements\":{\"moon_phase\":\"full\"},");

    assert!(matches!(refused(&text), AppComposeError::Syntax { .. }));
}

#[test]
fn separated_keys_are_a_demand_on_a_kms() {
    let with = |scheme: &str, provider: &str| {
        let extra = format!(":\"3\",\"key_provider\":\"{provider}\",\"requirements\":{{\"key_scheme\":\"{scheme}\"}},");
        AppCompose::parse(MINIMAL.replace(":2,", &extra).into_bytes())
    };

    assert_eq!(with("separated", "kms").unwrap().document().key_scheme(), KeyScheme::Separated);
    assert_eq!(with("compatible", "none").unwrap().document().key_scheme(), KeyScheme::Compatible);
    assert!(matches!(with("separated", "none"), Err(AppComposeError::Field { field: "requirements.key_scheme", .. })));
    assert!(matches!(with("other", "kms"), Err(AppComposeError::Syntax { .. })));
    let without = AppCompose::parse(MINIMAL.as_bytes().to_vec()).unwrap();
    assert_eq!(without.document().key_scheme(), KeyScheme::Compatible);
}

#[test]
fn a_new_document_can_demand_separated_keys() {
    let mut document = AppComposeDocument::for_docker_compose("app", "services: {}\n");
    document.set_key_provider(KeyProviderKind::Kms);
    document.demand(Requirements { key_scheme: Some(KeyScheme::Separated), ..Requirements::default() });

    let app = AppCompose::from_document(document).unwrap();

    let read = AppCompose::parse(app.raw().to_vec()).unwrap();
    assert_eq!((read.document().key_scheme(), read.document().manifest_version()), (KeyScheme::Separated, 3));
}

#[test]
fn a_document_without_demands_is_written_as_before() {
    let compose = AppCompose::from_document(AppComposeDocument::for_docker_compose("hello", "services: {}\n")).unwrap();

    assert!(!String::from_utf8_lossy(compose.raw()).contains("key_scheme"));
    assert_eq!(compose.compose_hash().to_string(), "60ed614dc5154bd248c383a3f19702ddeb6b6bc0b13633b870ce900ee2be416d");
}

#[test]
fn volumes_cannot_leave_their_directory_or_share_a_target() {
    let volume = |source: &str, target: &str| format!(r#"{{"source":"{source}","verity_root":"{}","target":"{target}"}}"#, "00".repeat(32));
    let with = |list: &str| MINIMAL.replace("\"name\"", &format!("\"verity_volumes\":[{list}],\"name\""));

    assert!(AppCompose::parse(with(&volume("a.img", "/data")).into_bytes()).is_ok());
    for bad in ["../a", "a/b", "", "a,b", ".hidden"] {
        assert!(matches!(refused(&with(&volume(bad, "/data"))), AppComposeError::Field { field: "verity_volumes", .. }), "{bad}");
    }
    refused(&with(&volume("a.img", "/x/../y")));
    refused(&with(&format!("{},{}", volume("a.img", "/data"), volume("b.img", "/data"))));
}

#[test]
fn a_new_document_reads_back_as_itself() {
    let mut document = AppComposeDocument::for_docker_compose("hello", "services: {}\n");
    document.allowed_envs.push("SECRET".to_owned());
    let compose = AppCompose::from_document(document).unwrap();

    assert_eq!(AppCompose::parse(compose.raw().to_vec()).unwrap(), compose);
}

proptest::proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes: Vec<u8>) {
        let _ = AppCompose::parse(bytes);
    }
}
