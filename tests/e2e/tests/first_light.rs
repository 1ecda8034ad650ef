//! One unmodified compose project, from deployment to removal, in a real guest.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test panics on purpose and reads as one story")]

use std::{fs, process::Command};

use dstack_e2e::{Stack, get, try_get};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn sha256_prefix(text: &str) -> String {
    let output = Command::new("sh").args(["-c", &format!("printf %s '{text}' | sha256sum")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..16].to_owned()
}

fn pid_of(stack: &Stack, needle: &str) -> String {
    let output = Command::new("pgrep").args(["-f", &format!("{needle}.*{}", stack.home().display())]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_compose_project_runs_measured_keyed_and_verified() {
    const SECRET: &str = "correct-horse-battery-staple-1f0c";
    let stack = Stack::start();

    // It runs, and knows who it is.
    let app = stack.deploy_hello("hello", SECRET);
    assert!(get(&app.url).contains(&app.app_id));
    let facts = json(&get(&format!("{}/api/info", app.url)));
    assert_eq!(facts["app_id"], app.app_id.as_str());
    assert_eq!(facts["secret_fingerprint"], sha256_prefix(SECRET), "the sealed secret did not arrive");

    // No file of the stack on the host holds the secret.
    assert_eq!(stack.files_containing(SECRET), Vec::<std::path::PathBuf>::new());

    // A stranger's view: simulated, and only counted when that is asked for.
    let accepted = stack.dstack(&["verify", &app.name, "--allow-simulated", "--json"]);
    assert_eq!(accepted.code, 0, "{}{}", accepted.stdout, accepted.stderr);
    assert_eq!(accepted.json()["verdict"], "SIMULATED");
    assert_eq!(stack.dstack(&["verify", &app.name]).code, 1);
    let through_app = stack.dstack(&["verify", &app.url, "--allow-simulated", "--json"]);
    assert_eq!(through_app.code, 0, "the app's own port hands out evidence: {}{}", through_app.stdout, through_app.stderr);

    // Without the danger switch a simulated root is nobody.
    let bare = stack.home().join("bare.toml");
    fs::write(&bare, "").unwrap();
    let refused = stack.dstack(&["verify", &app.url, "--allow-simulated", "--json", "--config", bare.to_str().unwrap()]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    assert_eq!(refused.json()["verdict"], "NOT VERIFIED");

    saved_evidence_is_bound_to_nonce_and_document(&stack, &app.url);

    // A VMM that is killed leaves the VM alone, and finds it again.
    let qemu = pid_of(&stack, "qemu-system");
    let vmm = pid_of(&stack, "dstack-vmm");
    assert!(!qemu.is_empty() && !vmm.is_empty(), "{:#?}", stack.processes());
    assert!(Command::new("kill").args(["-9", &vmm]).status().unwrap().success());
    assert!(try_get(&format!("{}/health", app.url)).is_ok());
    let _up = stack.dstack(&["up"]).must_succeed();
    assert_eq!(pid_of(&stack, "qemu-system"), qemu);
    assert_eq!(stack.app("hello").vm_id, app.vm_id);

    // Stopped and started, it is the same instance with the same keys.
    let _stopped = stack.dstack(&["stop", "hello"]).must_succeed();
    assert!(try_get(&format!("{}/health", app.url)).is_err());
    let _started = stack.dstack(&["start", "hello"]).must_succeed();
    let again = json(&get(&format!("{}/api/info", app.url)));
    assert_eq!(again, facts);

    assert!(!stack.dstack(&["logs", "hello"]).must_succeed().stdout.is_empty());

    // Removed, it leaves nothing.
    let _removed = stack.dstack(&["rm", "-f", "hello"]).must_succeed();
    assert_eq!(stack.dstack(&["ps", "--json"]).must_succeed().json(), Value::Array(Vec::new()));
    assert!(pid_of(&stack, "qemu-system").is_empty());
    assert!(!stack.processes().iter().any(|line| line.contains(&app.vm_id)), "{:#?}", stack.processes());
    let left = Command::new("find").arg(stack.home().join("vmm")).args(["-name", &format!("*{}*", app.vm_id)]).output().unwrap();
    assert_eq!(String::from_utf8(left.stdout).unwrap(), "");
}

fn saved_evidence_is_bound_to_nonce_and_document(stack: &Stack, url: &str) {
    let verify = |text: &str, nonce: &str| {
        let file = stack.home().join("evidence.json");
        fs::write(&file, text).unwrap();
        let config = stack.home().join("verify.toml");
        let arguments = ["verify", file.to_str().unwrap(), "--allow-simulated", "--nonce", nonce, "--config", config.to_str().unwrap()];
        stack.dstack(&arguments).code
    };
    let evidence = get(&format!("{url}/.well-known/dstack/evidence?nonce=00112233"));

    assert_eq!(verify(&evidence, "00112233"), 0);
    assert_eq!(verify(&evidence, "00112234"), 1, "another nonce");

    let mut tampered = json(&evidence);
    let document = tampered["app_compose"].as_str().unwrap().replace("hello-app:1", "hello-app:2");
    tampered["app_compose"] = document.into();
    assert_eq!(verify(&tampered.to_string(), "00112233"), 1, "another document");

    let mut tampered = json(&evidence);
    let quote = tampered["quote"].as_str().unwrap();
    let flipped = if &quote[400..401] == "0" { "1" } else { "0" };
    tampered["quote"] = format!("{}{flipped}{}", &quote[..400], &quote[401..]).into();
    assert_eq!(verify(&tampered.to_string(), "00112233"), 1, "another register");

    assert_ne!(verify("{\"quote\":\"00\"}", "00112233"), 0);
}
