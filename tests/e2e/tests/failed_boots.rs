//! A boot that fails says which phase and why on the host, ends its processes, and loses nothing.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{fs, os::unix::fs::FileExt as _, path::Path, time::Duration};

use dstack_api::vmm::VmConfiguration;
use dstack_e2e::{App, Holdings, Stack, eventually, get};
use prost::Message as _;
use rusqlite::{Connection, params};

fn configuration(stack: &Stack, app: &App) -> VmConfiguration {
    let database = Connection::open(stack.home().join("vmm/vmm.sqlite")).unwrap();
    let select = "SELECT configuration FROM revision WHERE vm_id = ?1";
    let bytes: Vec<u8> = database.query_row(select, params![app.vm_id], |row| row.get(0)).unwrap();
    VmConfiguration::decode(bytes.as_slice()).unwrap()
}

/// What a hostile host can do: launch another document than the owner's, and measure it as what it is.
fn swap_compose(stack: &Stack, app: &App, from: &str, to: &str) {
    let mut configuration = configuration(stack, app);
    assert!(configuration.compose_file.contains(from));
    configuration.compose_file = configuration.compose_file.replace(from, to);
    let database = Connection::open(stack.home().join("vmm/vmm.sqlite")).unwrap();
    let update = "UPDATE revision SET configuration = ?2 WHERE vm_id = ?1";
    assert_eq!(database.execute(update, params![app.vm_id, configuration.encode_to_vec()]).unwrap(), 1);
}

/// What the stack holds once the stopped VM's last process, the carrier of its vsock, has ended too.
fn at_rest(stack: &Stack, app: &App) -> Holdings {
    let rests = |holdings: &Holdings| {
        let mut running = holdings.processes.iter().chain(&holdings.supervised);
        !running.any(|name| name.contains(&app.vm_id)) && !holdings.sockets.iter().any(|path| path.ends_with("vsock.sock_10000"))
    };
    eventually("the end of the VM's processes", Duration::from_secs(30), || Some(Holdings::of(stack)).filter(rests))
}

/// The guest's one line about its failed boot, once it has powered itself off and nothing of the run is left.
fn settled(stack: &Stack, app: &App, stopped: &Holdings) -> String {
    let info = || stack.dstack(&["info", &app.name, "--json"]).must_succeed().json();
    let ended = |info: &serde_json::Value| matches!(info["status"].as_str(), Some("exited" | "stopped"));
    let info = eventually("the end of a failed boot", Duration::from_secs(180), || Some(info()).filter(ended));
    let left = at_rest(stack, app);
    assert_eq!((&left.processes, &left.supervised, &left.sockets), (&stopped.processes, &stopped.supervised, &stopped.sockets));
    assert_eq!(left.files, stopped.files);
    info["boot_error"].as_str().unwrap().to_owned()
}

/// Starts, and alters the host's share before the guest has read it.
fn failure_of_a_start(stack: &Stack, app: &App, tamper: impl FnOnce(&Path)) -> String {
    let stopped = at_rest(stack, app);
    let _started = stack.dstack(&["start", &app.name, "--no-wait"]).must_succeed();
    tamper(&stack.home().join("vmm/vm").join(&app.vm_id).join("shared.img"));
    settled(stack, app, &stopped)
}

#[track_caller]
fn must_say(boot_error: &str, phase: &str, code: &str, fix: &str) {
    assert!(boot_error.starts_with(&format!("{phase}: ")), "phase {phase}: {boot_error}");
    let (_, told) = boot_error.split_once(&format!(" [{code}]; fix: ")).unwrap_or_else(|| panic!("code {code}: {boot_error}"));
    assert!(told.contains(fix), "fix {fix}: {boot_error}");
}

/// Overwrites bytes of a file in place, found by what they are.
fn overwrite(file: &Path, needle: &[u8], replacement: &[u8]) {
    let content = fs::read(file).unwrap();
    let at = content.windows(needle.len()).position(|window| window == needle).unwrap();
    write_at(file, at as u64, replacement);
}

fn write_at(file: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn failures_name_phase_code_and_fix_and_the_disk_survives_them() {
    let stack = Stack::start();
    let empty = Holdings::of(&stack);
    let app = stack.deploy_hello("hello", "kept");
    let facts = get(&format!("{}/api/info", app.url));
    let _stopped = stack.dstack(&["stop", &app.name]).must_succeed();
    let sealed = configuration(&stack, &app).encrypted_env;

    // Another document, launched as what it is: the KMS refuses it.
    swap_compose(&stack, &app, "hello-app:1", "hello-app:2");
    let stopped = at_rest(&stack, &app);
    let waited = stack.dstack(&["start", &app.name]).must_fail_with("guest/kms-refused");
    waited.must_say("compose-hash-not-allowed", "compose_hashes");
    let refused = settled(&stack, &app, &stopped);
    must_say(&refused, "keys", "guest/kms-refused", "compose_hashes");
    assert!(refused.contains("kms/compose-hash-not-allowed"), "{refused}");
    swap_compose(&stack, &app, "hello-app:2", "hello-app:1");

    // A share that changes after the launch was measured: the guest compares it with MRCONFIGID.
    let other_document = failure_of_a_start(&stack, &app, |share| overwrite(share, b"hello-app:1", b"hello-app:2"));
    must_say(&other_document, "keys", "guest/mr-config-id-differs", "app-compose.json");

    // A secret that was altered: authenticated encryption.
    let altered: Vec<u8> = sealed[40..56].iter().map(|byte| byte ^ 1).collect();
    let other_secret = failure_of_a_start(&stack, &app, |share| overwrite(share, &sealed[40..56], &altered));
    must_say(&other_secret, "disk", "guest/env-refused", "dstack deploy");

    // No file system at all.
    let no_share = failure_of_a_start(&stack, &app, |share| write_at(share, 0, &[0; 512]));
    must_say(&no_share, "host-share", "guest/host-share-unreadable", "stop and start");

    // No KMS.
    stack.kill("dstack-kms");
    let no_kms = failure_of_a_start(&stack, &app, |_| {});
    must_say(&no_kms, "keys", "guest/kms-unreachable", "start the KMS");
    let _up = stack.dstack(&["up"]).must_succeed();

    // Nothing was lost: the same keys, and a disk they open.
    let _started = stack.dstack(&["start", &app.name]).must_succeed();
    assert_eq!(get(&format!("{}/api/info", app.url)), facts);

    // Removed, the VM leaves what its deployment made for others to use: the packed images and the permission.
    let _removed = stack.dstack(&["rm", "-f", &app.name]).must_succeed();
    let left = Holdings::of(&stack);
    let packed = left.files.iter().filter(|path| path.starts_with(stack.home().join("volumes"))).cloned().collect();
    stack.must_hold_only(&Holdings { files: packed, allowed: left.allowed, ..empty });
}
