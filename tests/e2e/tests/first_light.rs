//! One unmodified compose project, from deployment to removal, in a real guest.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "a test panics on purpose and reads as one story")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use dstack_e2e::{Holdings, Stack, eventually, get, hello, try_get};
use serde_json::Value;

/// The example, and a service that keeps a random word on the app's data disk: written once, served ever after.
const KEEPER: &str = r#"
  keeper:
    image: hello-app:1
    command:
      - /usr/bin/python3
      - -c
      - |
        import functools, http.server, os, secrets
        if not os.path.exists("/kept/word"):
            open("/kept/word", "w").write(secrets.token_hex())
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/kept")
        http.server.ThreadingHTTPServer(("", 9000), handler).serve_forever()
    ports:
      - "9000:9000"
    volumes:
      - kept:/kept
volumes:
  kept: {}
"#;
/// What every boot with keys from a KMS measures into RTMR3, in this order.
const MEASURED: [&str; 10] = [
    "system-preparing",
    "app-id",
    "compose-hash",
    "gpu-policy-hash",
    "instance-id",
    "boot-mr-done",
    "os-image-hash",
    "key-provider",
    "storage-fs",
    "system-ready",
];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn sha256_prefix(text: &str) -> String {
    let output = Command::new("sh").args(["-c", &format!("printf %s '{text}' | sha256sum")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..16].to_owned()
}

/// A running `dstack logs -f`.
struct Follower {
    process: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(stack: &Stack, name: &str) -> Self {
        let mut process = stack.command(&["logs", "-f", "--lines", "1", name]).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, lines }
    }

    fn must_see(&self, needle: &str) {
        while !self.lines.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("no {needle:?} in the log")).contains(needle) {}
    }

    /// As ^C in a terminal does.
    fn interrupt(mut self) -> i32 {
        assert!(self.process.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(Command::new("kill").args(["-INT", &self.process.id().to_string()]).status().unwrap().success());
        eventually("the end of an interrupted command", Duration::from_secs(5), || self.process.try_wait().unwrap()).code().unwrap_or(-1)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn a_compose_project_runs_measured_keyed_and_verified() {
    const SECRET: &str = "correct-horse-battery-staple-1f0c";
    let stack = Stack::start();
    let empty = Holdings::of(&stack);

    // It runs, and knows who it is.
    let compose = stack.home().join("docker-compose.yaml");
    fs::write(&compose, fs::read_to_string(hello().join("docker-compose.yaml")).unwrap() + KEEPER).unwrap();
    let app = stack.deploy(&compose, "hello", SECRET, &["-p", "auto:8080", "-p", "auto:9000"]);
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
    let qemu = stack.process("qemu-system-x86_64").unwrap();
    stack.kill("dstack-vmm");
    assert!(try_get(&format!("{}/health", app.url)).is_ok());
    let _up = stack.dstack(&["up"]).must_succeed();
    assert_eq!(stack.process("qemu-system-x86_64"), Some(qemu));
    assert_eq!(stack.app("hello").vm_id, app.vm_id);

    // Stopped and started, it is the same instance with the same keys and the same data; whoever follows its log sees both.
    let word = get(&format!("{}/word", app.urls[1]));
    assert_eq!(word.len(), 64, "{word}");
    let follower = Follower::start(&stack, "hello");
    follower.must_see("");
    let _stopped = stack.dstack(&["stop", "hello"]).must_succeed();
    assert!(try_get(&format!("{}/health", app.url)).is_err());
    let _started = stack.dstack(&["start", "hello"]).must_succeed();
    follower.must_see("timeline {");
    assert_eq!(follower.interrupt(), 0);
    app.wait_for_every_port();
    assert_eq!(json(&get(&format!("{}/api/info", app.url))), facts);
    assert_eq!(get(&format!("{}/word", app.urls[1])), word);

    assert!(!stack.dstack(&["logs", "hello"]).must_succeed().stdout.is_empty());

    // Removed, it leaves what its deployment made for others to use: the packed images and the permission.
    let _removed = stack.dstack(&["rm", "-f", "hello"]).must_succeed();
    let left = Holdings::of(&stack);
    let packed = left.files.iter().filter(|path| path.starts_with(stack.home().join("volumes"))).cloned().collect();
    stack.must_hold_only(&Holdings { files: packed, allowed: left.allowed, ..empty });
    assert!(stack.process("qemu-system-x86_64").is_none());
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
    assert_eq!(measured_events(&json(&evidence)), MEASURED);

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

/// Names of what was measured into RTMR3.
fn measured_events(evidence: &Value) -> Vec<String> {
    let log = json(evidence["event_log"].as_str().unwrap());
    let runtime = log.as_array().unwrap().iter().filter(|event| event["imr"] == 3);
    runtime.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}
