//! The built `dstack` command and the files it is given.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, dead_code, missing_docs, reason = "tests panic on purpose")]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub const EVIDENCE: &str = "crates/attestation/tests/testdata/";
pub const TDX: &str = "crates/attestation/tests/testdata/tdx/";

/// A file of the repository.
pub fn path_of(name: &str) -> String {
    format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))
}

pub fn evidence(name: &str) -> Vec<u8> {
    std::fs::read(path_of(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A file that lives as long as the test program.
pub fn scratch(name: &str, bytes: &[u8]) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("verify-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{}-{}", name.replace(' ', "-"), COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

pub fn rfc3339(seconds: u64) -> String {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap().format(&Rfc3339).unwrap()
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

/// How the command ended.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
    json: Value,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        let code = output.status.code().unwrap_or_else(|| panic!("ended by a signal: {err}"));
        Self { code, json: serde_json::from_str(&out).unwrap_or_default(), out, err }
    }
}

impl Answer {
    /// The verdict.
    pub fn json(&self) -> &Value {
        assert!(self.json.is_object(), "no verdict: {}{}", self.out, self.err);
        &self.json
    }

    pub fn check(&self, name: &str) -> &Value {
        let checks = self.json()["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {}", self.out))
    }

    /// The first check that failed.
    pub fn failed(&self) -> Option<&Value> {
        self.json()["checks"].as_array().unwrap().iter().find(|check| check["outcome"] == "fail")
    }
}

fn dstack(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstack"));
    command.arg("verify").args(arguments).env("DSTACK_HOME", env!("CARGO_TARGET_TMPDIR")).env_remove("DSTACK_VMM_URL");
    command.stdin(Stdio::null());
    command
}

/// `dstack verify` with exactly these arguments.
pub fn verify(arguments: &[&str]) -> Answer {
    dstack(arguments).output().unwrap().into()
}

/// The verdict about a file, offline, as JSON.
pub fn judge(input: &str, arguments: &[&str]) -> Answer {
    verify(&[&[input, "--offline", "--json"], arguments].concat())
}

/// The same about bytes on standard input.
pub fn judge_stdin(bytes: &[u8], arguments: &[&str]) -> Answer {
    let mut command = dstack(&[&["-", "--offline", "--json"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Most memory that any command so far had resident, in bytes.
pub fn peak_memory_of_children() -> i64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    usage.max_rss() * 1024
}
