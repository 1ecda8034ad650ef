//! Where evidence comes from.

use std::{
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_attestation::{Endorsements, Evidence, QuoteCollateral};
use dstack_rpc::{Client, Endpoint, system_tls};
use dstack_service::fs::write_atomic;
use http::StatusCode;
use serde_json::Value;

use super::nonce::Nonce;
use crate::{
    args::VmmArgs,
    failure::{EXIT_USAGE, Failure, Outcome},
    home::Home,
    output::printable,
    stack::LocalStack,
    vms::{Vmm, agent_url},
};

const EVIDENCE_PATH: &str = "/.well-known/dstack/evidence";
/// A quote takes its time under load.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Evidence carries an app-compose.json and logs.
const ANSWER_LIMIT: usize = 64 << 20;

/// What the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A running app.
    Url {
        /// Its address.
        url: String,
        /// It runs on the local stack.
        is_local_stack: bool,
    },
    /// Saved evidence; `-` is stdin.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, .. } => f.write_str(url),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// Reads a URL, a file's path, or the name of a VM of the local stack.
    ///
    /// Errors: it is none of them.
    pub(super) async fn find(text: &str, home: &Home) -> Outcome<Self> {
        if text.contains("://") {
            let is_local_stack = is_local_app(text, home).await;
            return Ok(Self::Url { url: text.to_owned(), is_local_stack });
        }
        if text == "-" || Path::new(text).exists() {
            return Ok(Self::File(text.into()));
        }
        if LocalStack::find(home)?.is_none() {
            let cause = format!("`{text}` is no URL and no file, and there is no local stack where it could be an app");
            return Err(Failure::usage(
                "verify/no-source",
                cause,
                "name a URL (https://…), an evidence file, or an app of the local stack",
            ));
        }
        let vmm = Vmm::connect(&VmmArgs { vmm: None, token_file: None })?;
        let vm = vmm.find(text).await.map_err(|failure| failure.with_exit(EXIT_USAGE))?;
        let url = agent_url(&vm).ok_or_else(|| {
            Failure::new("verify/no-agent-port", format!("the guest agent of {text} is not published"), "give the URL of the app instead")
        })?;
        Ok(Self::Url { url, is_local_stack: true })
    }
}

/// Whether `url` is a published port of a VM of the local stack. Where that cannot be found out, it is not.
async fn is_local_app(url: &str, home: &Home) -> bool {
    let Ok(Some(_)) = LocalStack::find(home) else { return false };
    let Some(authority) = url.split_once("://").and_then(|(_, rest)| rest.split('/').next()) else { return false };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    if !matches!(host, "127.0.0.1" | "localhost" | "[::1]") {
        return false;
    }
    let Ok(vmm) = Vmm::connect(&VmmArgs { vmm: None, token_file: None }) else { return false };
    let Ok(vms) = vmm.vms().await else { return false };
    vms.iter()
        .flat_map(|vm| &vm.configuration)
        .flat_map(|configuration| &configuration.ports)
        .any(|mapping| mapping.host_port.to_string() == port)
}

/// Evidence as it came, with what was saved beside it.
#[derive(Debug, Clone)]
pub(super) struct Collected {
    text: String,
    /// Collateral that was saved with the evidence. Signed by the vendor, so a file may carry it.
    pub collateral: Option<QuoteCollateral>,
}

impl Collected {
    fn new(text: String) -> Self {
        let saved = serde_json::from_str::<Value>(&text).ok().and_then(|mut value| Some(value.get_mut("collateral")?.take()));
        let collateral = saved.and_then(|value| serde_json::from_value(value).ok());
        Self { text, collateral }
    }

    /// The evidence inside.
    ///
    /// Errors: it is none.
    pub(super) fn parse(&self) -> Outcome<Evidence> {
        Evidence::parse_json(&self.text).map_err(|error| {
            Failure::new(
                "verify/malformed-evidence",
                error.to_string(),
                "give the JSON that /.well-known/dstack/evidence or GetQuote answers, or a file saved with --save",
            )
        })
    }

    /// Writes evidence and collateral into one file.
    ///
    /// Errors: not writable.
    pub(super) fn save(&self, path: &Path, nonce: Option<&Nonce>, endorsements: &Endorsements) -> Outcome {
        let bytes = self
            .with_collateral(nonce, endorsements)
            .map_err(|error| Failure::new("cli/internal", error.to_string(), "report this defect"))?;
        write_atomic(path, &bytes, 0o644).map_err(|error| Failure::io("writing", path, &error))
    }

    fn with_collateral(&self, nonce: Option<&Nonce>, endorsements: &Endorsements) -> serde_json::Result<Vec<u8>> {
        let mut value: Value = serde_json::from_str(&self.text)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("collateral".to_owned(), serde_json::to_value(&endorsements.collateral)?);
            if let Some(nonce) = nonce {
                fields.insert("nonce".to_owned(), Value::String(nonce.to_string()));
            }
        }
        serde_json::to_vec_pretty(&value)
    }
}

/// Asks a running app for evidence over `nonce`.
///
/// Errors: no answer, or no evidence there.
pub(super) async fn fetch(url: &str, nonce: &Nonce) -> Outcome<Collected> {
    let operation = format!("asking {url} for evidence");
    let endpoint = Endpoint::parse(url).map_err(|error| Failure::from(error).with_exit(EXIT_USAGE))?;
    let client = Client::new(endpoint).with_tls(system_tls()).with_timeout(TIMEOUT).with_answer_limit(ANSWER_LIMIT);
    let answer =
        client.get(&format!("{EVIDENCE_PATH}?nonce={nonce}")).await.map_err(|error| Failure::from(error).during(operation.clone()))?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status == StatusCode::NOT_FOUND {
        let fix = "give the guest agent's address (port 8090 of the VM), or let the app serve this path";
        return Err(Failure::new("verify/no-evidence", format!("there is no {EVIDENCE_PATH}"), fix).during(operation));
    }
    if answer.status != StatusCode::OK {
        let cause = format!("HTTP {}: {}", answer.status, printable(&text, 200));
        return Err(Failure::new("verify/no-evidence", cause, "try again; read the VM's log").during(operation));
    }
    Ok(Collected::new(text))
}

/// Reads saved evidence.
///
/// Errors: unreadable or too long.
pub(super) fn read(path: &Path) -> Outcome<Collected> {
    let mut bytes = Vec::new();
    let limit = ANSWER_LIMIT as u64 + 1;
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    result.map_err(|error| Failure::io("reading", path, &error))?;
    if bytes.len() > ANSWER_LIMIT {
        return Err(Failure::new("verify/malformed-evidence", format!("{} has more than 64 MiB", path.display()), "give an evidence file"));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::new("verify/malformed-evidence", format!("{} is not text", path.display()), "give an evidence file in JSON")
    })?;
    Ok(Collected::new(text))
}
