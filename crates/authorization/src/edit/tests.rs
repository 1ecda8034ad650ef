#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeSet;

use super::*;

const HEAD: &str = "# mine\nversion = 1 # one\n";

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    file: AllowListFile,
}

fn fixture(text: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("allow.toml");
    fs::write(&path, text).unwrap();
    Fixture { file: AllowListFile::new(&path), path, _directory: directory }
}

fn app() -> AppId {
    AppId::new([1; 20])
}

fn compose(byte: u8) -> ComposeHash {
    ComposeHash::new([byte; 32])
}

#[test]
fn a_plan_tells_and_changes_nothing_until_saved() {
    let f = fixture(HEAD);

    let plan = f.file.allow_app(app(), compose(2), "hello").unwrap();

    let lines: Vec<String> = plan.changes().iter().map(ToString::to_string).collect();
    assert_eq!(lines, [format!("allow app {} on any device", app()), format!("allow compose hash {} for app {}", compose(2), app())]);
    assert_eq!(fs::read_to_string(&f.path).unwrap(), HEAD);

    plan.save().unwrap();
    let list = AllowList::load(&f.path).unwrap();
    assert!(list.apps().get(&app()).unwrap().compose_hashes.contains(&compose(2)));
    assert!(fs::read_to_string(&f.path).unwrap().starts_with(HEAD), "comments survive");
}

#[test]
fn repeating_an_edit_changes_nothing() {
    let f = fixture(HEAD);
    let image = OsImageHash::new([3; 32]);
    f.file.allow_app(app(), compose(2), "").unwrap().save().unwrap();
    f.file.allow_os_image(image, "dstack-dev").unwrap().save().unwrap();
    let before = fs::read_to_string(&f.path).unwrap();

    assert!(f.file.allow_app(app(), compose(2), "again").unwrap().changes().is_empty());
    assert!(f.file.allow_os_image(image, "").unwrap().changes().is_empty());
    assert_eq!(fs::read_to_string(&f.path).unwrap(), before);
}

#[test]
fn a_known_app_keeps_its_devices_and_hashes() {
    let text = format!(
        "{HEAD}[[apps]]\napp_id = \"0x{}\"\ncompose_hashes = [\"{}\"] # first\ndevices = [\"{}\"]\n",
        app(),
        compose(2),
        compose(7)
    );
    let f = fixture(&text);

    let plan = f.file.allow_app(app(), compose(3), "").unwrap();

    assert_eq!(plan.changes(), [Change::ComposeHashAllowed(app(), compose(3))]);
    plan.save().unwrap();
    let list = AllowList::load(&f.path).unwrap();
    let allowed = list.apps().get(&app()).unwrap();
    assert_eq!(allowed.compose_hashes, BTreeSet::from([compose(2), compose(3)]));
    assert!(matches!(&allowed.devices, Devices::Only(ids) if ids.len() == 1));
}

#[test]
fn revoking_takes_back_what_was_allowed() {
    let f = fixture(HEAD);
    let image = OsImageHash::new([3; 32]);
    let edits = [
        Edit::AllowOsImage { hash: image, note: String::new() },
        Edit::AllowApp { app_id: app(), compose_hash: compose(2), devices: Devices::Any, note: String::new() },
        Edit::AllowApp { app_id: app(), compose_hash: compose(3), devices: Devices::Any, note: String::new() },
    ];
    f.file.plan(&edits).unwrap().save().unwrap();

    let revoke = Edit::RevokeComposeHash { app_id: app(), compose_hash: compose(2) };
    f.file.plan(&[revoke, Edit::RevokeOsImage { hash: image }]).unwrap().save().unwrap();
    let list = AllowList::load(&f.path).unwrap();
    assert_eq!(list.apps().get(&app()).unwrap().compose_hashes, BTreeSet::from([compose(3)]));
    assert!(list.os_images().is_empty());

    let plan = f.file.plan(&[Edit::RevokeApp { app_id: app() }]).unwrap();
    assert_eq!(plan.changes(), [Change::AppRevoked(app())]);
    plan.save().unwrap();
    assert!(AllowList::load(&f.path).unwrap().apps().is_empty());
    assert!(f.file.plan(&[Edit::RevokeApp { app_id: app() }]).unwrap().changes().is_empty());
}

#[test]
fn devices_of_a_new_app_are_written() {
    let f = fixture(HEAD);
    let devices = Devices::Only(BTreeSet::from([dstack_manifest::Digest32::new([9; 32])]));
    let edit = Edit::AllowApp { app_id: app(), compose_hash: compose(2), devices: devices.clone(), note: String::new() };

    f.file.plan(&[edit]).unwrap().save().unwrap();

    assert_eq!(AllowList::load(&f.path).unwrap().apps().get(&app()).unwrap().devices, devices);
}

#[test]
fn a_change_between_plan_and_save_is_refused() {
    let f = fixture(HEAD);
    let plan = f.file.allow_app(app(), compose(2), "").unwrap();
    fs::write(&f.path, "version = 1\n").unwrap();

    let error = plan.save().unwrap_err();

    assert_eq!(error.code(), "authorization/allow-list-changed");
    assert_eq!(fs::read_to_string(&f.path).unwrap(), "version = 1\n");
}

#[test]
fn an_invalid_file_is_not_edited() {
    let f = fixture("version = 1\napps = 3\n");

    assert_eq!(f.file.allow_app(app(), compose(2), "").unwrap_err().code(), "authorization/allow-list-invalid");
    assert!(AllowListFile::new("/nonexistent/allow.toml").allow_app(app(), compose(2), "").is_err());
}

#[test]
fn inline_tables_are_left_to_a_person() {
    let f = fixture("version = 1\napps = []\n");

    let error = f.file.allow_app(app(), compose(2), "").unwrap_err();

    assert!(error.to_string().contains("[[apps]]"), "{error}");
}

#[test]
fn creation_happens_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = AllowListFile::new(directory.path().join("allow.toml"));

    let plan = file.plan_create(true);
    assert_eq!(plan.changes(), [Change::CreateFile { allow_simulated: true }]);
    plan.save().unwrap();

    assert!(AllowList::load(directory.path().join("allow.toml")).unwrap().accepts_simulated());
    assert!(file.plan_create(false).changes().is_empty());
}
