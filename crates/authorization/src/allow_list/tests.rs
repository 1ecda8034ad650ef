#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::*;

const APP: &str = "0101010101010101010101010101010101010101";
const HASH: &str = "0202020202020202020202020202020202020202020202020202020202020202";

fn parse(text: &str) -> Result<AllowList, AllowListError> {
    AllowList::parse(text, Path::new("allow.toml"))
}

fn must_refuse(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn smallest_list_allows_nothing() {
    let list = parse("version = 1\n").unwrap();

    assert!(list.apps().is_empty());
    assert!(list.os_images().is_empty());
    assert!(!list.accepts_simulated());
    assert_eq!(list.tcb_statuses, BTreeSet::from(["UpToDate".to_owned()]));
}

#[test]
fn a_full_list_is_read() {
    let list = parse(&format!(
        "version = 1\ngateway_app_id = \"{APP}\"\ntcb_statuses = [\"UpToDate\", \"SWHardeningNeeded\"]\nrejected_advisories = [\"INTEL-SA-1\"]\n\
         [[os_images]]\nhash = \"{HASH}\"\nnote = \"x\"\n[[apps]]\napp_id = \"{APP}\"\ncompose_hashes = [\"{HASH}\"]\ndevices = [\"{HASH}\"]\n\
         [kms]\nmr_aggregated = [\"{HASH}\"]\nany_device = true\n[danger]\nallow_simulated = true\n"
    ))
    .unwrap();

    let app = list.apps().get(&APP.parse().unwrap()).unwrap();
    assert_eq!(app.compose_hashes, BTreeSet::from([HASH.parse().unwrap()]));
    assert_eq!(app.devices, Devices::Only(BTreeSet::from([HASH.parse().unwrap()])));
    assert_eq!(list.gateway_app_id(), Some(&APP.parse().unwrap()));
    assert!(list.accepts_simulated());
}

#[test]
fn problems_are_named_with_their_line() {
    let app = |rest: &str| format!("version = 1\n\n[[apps]]\napp_id = \"{APP}\"\ncompose_hashes = []\n{rest}");
    for (text, expected) in [
        ("version = 2\n".to_owned(), "allow.toml:1: version must be 1"),
        ("version = 1\nos_image = []\n".to_owned(), "allow.toml:2: unknown field `os_image`"),
        ("version = 1\n[[os_images]]\nhash = \"00\"\n".to_owned(), "allow.toml:3: OS image hash must be 32 bytes of hex"),
        (
            format!("version = 1\n[[os_images]]\nhash = \"{HASH}\"\n[[os_images]]\nhash = \"0x{HASH}\"\n"),
            "allow.toml:5: this OS image is listed twice",
        ),
        (app(""), "allow.toml:3: say any_device = true, or list devices"),
        (app("any_device = true\ndevices = [\"\"]\n"), "allow.toml:7: devices and any_device"),
        (app("devices = [\n\"x\"]\n"), "allow.toml:7: SHA-256 digest must be 32 bytes"),
        (
            app(&format!("any_device = true\n[[apps]]\napp_id = \"{APP}\"\ncompose_hashes = []\nany_device = true\n")),
            "allow.toml:8: this app is listed twice",
        ),
        ("version = 1\ntcb_statuses = []\n".to_owned(), "allow.toml:2: an empty list denies everything"),
        ("version = 1\ntcb_statuses = [\"UpToDate\",\n\"Revoked\"]\n".to_owned(), "allow.toml:3: unknown or never acceptable TCB status"),
        ("version = 1\ntee_variants = []\n".to_owned(), "allow.toml:2: an empty list denies everything"),
        ("version = 1\ntee_variants = [\n\"tdx\"]\n".to_owned(), "allow.toml:3: unknown kind of TEE"),
        ("version = 1\n\nmax_evidence_age_seconds = 0\n".to_owned(), "allow.toml:3: no evidence is that fresh"),
        ("version = 1\n[danger]\nsimulated = true\n".to_owned(), "allow.toml:3: unknown field `simulated`"),
        ("[[os_images]]\n".to_owned(), "allow.toml:1: missing field `hash`"),
        ("".to_owned(), "allow.toml:1: missing field `version`"),
        ("version = \n".to_owned(), "allow.toml:1: "),
    ] {
        let error = must_refuse(&text);

        assert!(error.starts_with(expected), "{text}\n{error}\n{expected}");
    }
}

#[test]
fn every_known_status_is_one_of_the_verifier() {
    use dstack_attestation::TcbStatus;
    let typed = [
        TcbStatus::UpToDate,
        TcbStatus::SWHardeningNeeded,
        TcbStatus::ConfigurationNeeded,
        TcbStatus::ConfigurationAndSWHardeningNeeded,
        TcbStatus::OutOfDate,
        TcbStatus::OutOfDateConfigurationNeeded,
    ];

    assert_eq!(typed.map(|status| status.to_string()), TCB_STATUSES.map(str::to_owned));
}

#[test]
fn a_huge_file_is_refused_without_reading_it_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allow.toml");
    std::fs::File::create(&path).unwrap().set_len(MAX_ALLOW_LIST_BYTES + 1).unwrap();

    let error = AllowList::load(&path).unwrap_err();

    assert_eq!(error.code(), "authorization/allow-list-too-large");
}

#[test]
fn a_missing_file_is_named_with_a_fix() {
    let error = AllowList::load("/nonexistent/allow.toml").unwrap_err();

    assert_eq!(error.code(), "authorization/allow-list-unreadable");
    assert!(error.fix().contains("/nonexistent/allow.toml"));
}
