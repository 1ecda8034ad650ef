//! A boot that fails says which phase and why on the host, and loses nothing.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::process::Command;

use dstack_api::vmm::VmConfiguration;
use dstack_e2e::{App, Stack, get};
use prost::Message as _;
use rusqlite::{Connection, params};

/// What a hostile host can do: hand the guest another document than the owner's.
fn swap_compose(stack: &Stack, app: &App, from: &str, to: &str) {
    let database = Connection::open(stack.home().join("vmm/vmm.sqlite")).unwrap();
    let select = "SELECT configuration FROM revision WHERE vm_id = ?1";
    let bytes: Vec<u8> = database.query_row(select, params![app.vm_id], |row| row.get(0)).unwrap();
    let mut configuration = VmConfiguration::decode(bytes.as_slice()).unwrap();
    assert!(configuration.compose_file.contains(from));
    configuration.compose_file = configuration.compose_file.replace(from, to);
    let update = "UPDATE revision SET configuration = ?2 WHERE vm_id = ?1";
    assert_eq!(database.execute(update, params![app.vm_id, configuration.encode_to_vec()]).unwrap(), 1);
}

fn must_fail_to_start(stack: &Stack, app: &App, parts: &[&str]) {
    let started = stack.dstack(&["start", &app.name]);
    assert_ne!(started.code, 0, "started: {}", started.stdout);
    let info = stack.dstack(&["info", &app.name, "--json"]).must_succeed().json();
    let boot_error = info["boot_error"].as_str().unwrap();
    for part in parts {
        assert!(boot_error.contains(part), "{part} is not in {boot_error:?}; {}", started.stderr);
        assert!(started.stderr.contains(part), "{part} is not in {}", started.stderr);
    }
}

#[test]
fn failures_name_phase_and_cause_and_the_disk_survives_them() {
    let stack = Stack::start();
    let app = stack.deploy_hello("hello", "kept");
    let facts = get(&format!("{}/api/info", app.url));
    let _stopped = stack.dstack(&["stop", &app.name]).must_succeed();

    // Another document: measured as what it is, so the KMS refuses.
    swap_compose(&stack, &app, "hello-app:1", "hello-app:2");
    must_fail_to_start(&stack, &app, &["compose-hash-not-allowed"]);
    swap_compose(&stack, &app, "hello-app:2", "hello-app:1");

    // No KMS.
    let kms = format!("dstack-kms.*{}", stack.home().display());
    assert!(Command::new("pkill").args(["-9", "-f", &kms]).status().unwrap().success());
    must_fail_to_start(&stack, &app, &["kms-unreachable"]);
    let _up = stack.dstack(&["up"]).must_succeed();

    // Nothing was lost: the same keys, and a disk they open.
    let _started = stack.dstack(&["start", &app.name]).must_succeed();
    assert_eq!(get(&format!("{}/api/info", app.url)), facts);
}
