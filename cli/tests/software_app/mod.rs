//! An app in a software TD that answers challenges, and the `dstack` command that judges it.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, dead_code, missing_docs, reason = "tests panic on purpose")]

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
};

use axum::{Router, extract::Query, response::IntoResponse as _, routing::get};
use dstack_event_log::{RuntimeEvent, names};
use dstack_manifest::{AppCompose, AppComposeDocument, InstanceId};
use dstack_rpc::{Listener, serve};
use dstack_tee_simulator::{QuotingEnclave, Vendor};
pub use dstack_testkit::software_td::os_image_hash;
use dstack_testkit::{
    software_td::{event, identity_events, quote_body, vm_config},
    software_tee::SoftwareTee,
};

pub const KMS_SPKI: &[u8] = b"a KMS";

/// How an app lies. [`Lie::None`] is honest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// A quote over another challenge, and the answer says so.
    OldNonce,
    /// A quote over another challenge, and the answer claims it is ours.
    ClaimedNonce,
    /// Another document than the measured one.
    OtherDocument,
    /// Another image than the one that booted.
    OtherKernel,
    /// An event of the log changed.
    OtherEvent,
    /// The quote's body changed after signing.
    ForgedQuote,
    /// A debuggable TD.
    Debug,
    /// No document shown.
    HiddenDocument,
}

pub fn app() -> AppCompose {
    let document = AppComposeDocument::for_docker_compose("hello", "services: {web: {image: nginx}}\n");
    AppCompose::from_document(document).unwrap()
}

/// The answer of `/.well-known/dstack/evidence`.
fn evidence(vendor: &Vendor, nonce: &[u8], lie: Lie) -> String {
    let app = app();
    let app_id = app.compose_hash().default_app_id();
    let provider = serde_json::json!({ "name": "kms", "id": hex::encode(KMS_SPKI) }).to_string();
    let mut runtime = identity_events(&app_id, &app.compose_hash(), &InstanceId::derive(&[1; 20], &app_id));
    runtime.extend([event(names::BOOT_MR_DONE, b""), event(names::KEY_PROVIDER, provider.as_bytes()), event(names::SYSTEM_READY, b"")]);
    let mut log: Vec<_> = runtime.iter().map(RuntimeEvent::to_event).collect();
    let mut report_data = [0; 64];
    let quoted: &[u8] = if matches!(lie, Lie::OldNonce | Lie::ClaimedNonce) { b"yesterday" } else { nonce };
    report_data[..quoted.len()].copy_from_slice(quoted);
    let mut body = quote_body(&app.compose_hash(), &log, report_data);
    match lie {
        Lie::OtherKernel => body.rtmr[1] = [9; 48],
        Lie::OtherEvent => log.truncate(6),
        Lie::Debug => body.td_attributes[0] |= 1,
        _ => {}
    }
    let mut quote = QuotingEnclave::new(vendor).quote(&body);
    if lie == Lie::ForgedQuote {
        // Inside the TD report, after the header of 48 bytes.
        quote[48 + 200] ^= 1;
    }
    let document = match lie {
        Lie::OtherDocument => Some("{}".to_owned()),
        Lie::HiddenDocument => None,
        _ => Some(String::from_utf8(app.raw().to_vec()).unwrap()),
    };
    let shown = if lie == Lie::OldNonce { quoted } else { nonce };
    let mut answer = serde_json::json!({
        "quote": hex::encode(quote),
        "event_log": serde_json::to_string(&log).unwrap(),
        "report_data": hex::encode(shown),
        "vm_config": serde_json::to_string(&vm_config()).unwrap(),
    });
    if let Some(document) = document {
        answer["app_compose"] = document.into();
    }
    answer.to_string()
}

/// A vendor with its collateral service, and a folder with policies.
pub struct World {
    pub directory: tempfile::TempDir,
    vendor: Arc<Vendor>,
    pub collateral_url: String,
    _tee: SoftwareTee,
}

impl World {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tee = SoftwareTee::start(directory.path()).await;
        Self { directory, vendor: Arc::clone(&tee.vendor), collateral_url: tee.collateral_url.clone(), _tee: tee }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts an app; returns its URL.
    pub async fn app(&self, lie: Lie) -> String {
        #[derive(serde::Deserialize)]
        struct Asked {
            nonce: String,
        }
        let vendor = Arc::clone(&self.vendor);
        let answer =
            move |Query(asked): Query<Asked>| async move { evidence(&vendor, &hex::decode(asked.nonce).unwrap(), lie).into_response() };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, Router::new().route("/.well-known/dstack/evidence", get(answer)), std::future::pending()));
        url
    }

    /// Writes a policy: collateral of this world, then `text`.
    pub fn policy(&self, text: &str) -> PathBuf {
        let path = self.path("verify.toml");
        std::fs::write(&path, format!("collateral_url = \"{}\"\n{text}", self.collateral_url)).unwrap();
        path
    }

    /// A policy that trusts the software TEE.
    pub fn simulated_policy(&self, text: &str) -> PathBuf {
        self.policy(&format!("{text}\n[danger]\nsimulated_root = \"tee/root.pem\"\n"))
    }

    /// Runs `dstack verify`.
    pub async fn verify(&self, args: &[&str]) -> Run {
        run(self.directory.path(), &[&["verify"], args].concat()).await
    }
}

pub fn reference_values() -> String {
    format!("os_images = [{{ hash = \"{}\", name = \"image1\" }}]", os_image_hash())
}

/// How the command ended.
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub async fn run(home: &Path, args: &[&str]) -> Run {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dstack"));
    command.args(args).env("DSTACK_HOME", home).env_remove("DSTACK_VMM_URL").current_dir(home).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.unwrap().into()
}

/// Hex and ports differ from run to run.
pub fn redacted(text: &str) -> String {
    let mut result = String::new();
    for line in text.lines() {
        for (index, word) in line.split(' ').enumerate() {
            if index > 0 {
                result.push(' ');
            }
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let is_hash = bare.len() >= 32 && bare.chars().all(|c| c.is_ascii_hexdigit());
            let is_url = bare.starts_with("http://127.0.0.1:");
            let is_time = bare.len() == 20 && bare.ends_with('Z') && bare.starts_with('2');
            let shown = if is_hash {
                word.replace(bare, &format!("<{} hex>", bare.len()))
            } else if is_url {
                word.replace(bare, "<url>")
            } else if is_time {
                "<time>".to_owned()
            } else if bare.contains("verify.toml") {
                "<policy>".to_owned()
            } else {
                word.to_owned()
            };
            result.push_str(&shown);
        }
        result.push('\n');
    }
    result
}
