//! Evidence of a running app, for somebody who knows only its address.
//!
//! ```text
//! https://app ──┬─ /.well-known/dstack/evidence?nonce=…   our agent: fresh
//!               ├─ /prpc/Info                             the reference's agent: as old as its certificate
//!               ├─ https://<app id>-8090.<domain>/prpc/Info   the same behind a gateway
//!               └─ /evidences/quote.json                  an ingress inside the app's VM: as old as its certificate
//! ```
//! Whatever answers is untrusted; every answer is bounded in size and time, and all come over connections with one certificate.

mod address;
mod connection;
mod gateway;
mod ingress;
mod witness;

use std::{sync::Arc, time::Duration};

use dstack_ra_tls::tls::ByRule;
use dstack_rpc::{Client, ClientError, Endpoint};
use dstack_verdict::{Challenge, MAX_INPUT_BYTES};
use http::StatusCode;

use self::address::Address;
pub(super) use self::connection::{Connection, judge as judge_connection};
use crate::{
    failure::{EXIT_USAGE, Failure, Outcome},
    output::printable,
    progress::Progress,
};

const EVIDENCE_PATH: &str = "/.well-known/dstack/evidence";
const INFO_PATH: &str = "/prpc/Info";
/// A quote takes its time under load.
const TIMEOUT: Duration = Duration::from_secs(60);
/// For everything but a quote.
const SHORT_TIMEOUT: Duration = Duration::from_secs(20);

/// What an app showed.
#[derive(Debug)]
pub(super) struct Found {
    /// JSON with evidence.
    pub evidence: Vec<u8>,
    /// The evidence was made for the challenge.
    pub is_fresh: bool,
    /// How we reached it.
    pub connection: Connection,
}

/// Asks the app at `url` for evidence over `challenge`.
///
/// Errors: no answer, or no evidence there.
pub(super) async fn discover(url: &str, challenge: &Challenge, progress: &Progress) -> Outcome<Found> {
    let address = Address::parse(url).ok_or_else(|| {
        Failure::usage("rpc/bad-endpoint", format!("`{url}` is no address of an app"), "write https://host or http://host:port")
    })?;
    let server = Server::new(&address.origin, TIMEOUT)?;
    let step = progress.step("evidence");
    let path = format!("{EVIDENCE_PATH}?nonce={}", hex::encode(&challenge.bytes));
    let fresh = server.get(&path).await.map_err(|error| Failure::from(error).during(format!("asking {url} for evidence")))?;
    let mut connection = Connection::of(&address, server.witness.as_deref().map(ByRule::rule));
    if let Some(evidence) = fresh.evidence(true)? {
        step.done(url);
        connection.look_around(&address, &server, progress).await;
        return Ok(Found { evidence, is_fresh: true, connection });
    }
    let (evidence, from) = match older(&address, &server).await? {
        Some(found) => found,
        None => return Err(nothing_there(url, &fresh)),
    };
    step.done(&from);
    connection.look_around(&address, &server, progress).await;
    Ok(Found { evidence, is_fresh: false, connection })
}

/// What the reference's agents and ingresses offer: evidence made for a certificate, not for us.
async fn older(address: &Address, server: &Server) -> Outcome<Option<(Vec<u8>, String)>> {
    if let Ok(answer) = server.get(INFO_PATH).await
        && let Some(evidence) = answer.evidence(false)?
    {
        return Ok(Some((evidence, format!("{}{INFO_PATH}", address.origin))));
    }
    if let Some(agent) = address.agent_behind_gateway() {
        let server = Server::new(&agent, SHORT_TIMEOUT)?;
        if let Ok(answer) = server.get(INFO_PATH).await
            && let Some(evidence) = answer.evidence(false)?
        {
            return Ok(Some((evidence, format!("{agent}{INFO_PATH}"))));
        }
    }
    let Ok(answer) = server.get(ingress::QUOTE_PATH).await else { return Ok(None) };
    Ok(answer.evidence(false)?.map(|evidence| (evidence, format!("{}{}", address.origin, ingress::QUOTE_PATH))))
}

fn nothing_there(url: &str, first: &Reply) -> Failure {
    let cause = if first.status == StatusCode::NOT_FOUND {
        format!("{url} has no {EVIDENCE_PATH}, no {INFO_PATH} and no {}", ingress::QUOTE_PATH)
    } else {
        format!("HTTP {}: {}", first.status, printable(&String::from_utf8_lossy(&first.body), 200))
    };
    let fix = "give the guest agent's address (port 8090 of the VM), let the app serve this path, or publish its evidence (public_tcbinfo)";
    Failure::new("verify/no-evidence", cause, fix).during(format!("asking {url} for evidence"))
}

/// One origin: scheme, host and port.
struct Server {
    client: Client,
    witness: Option<Arc<ByRule<witness::Witness>>>,
}

impl Server {
    fn new(origin: &str, timeout: Duration) -> Outcome<Self> {
        let endpoint = Endpoint::parse(origin).map_err(|error| Failure::from(error).with_exit(EXIT_USAGE))?;
        let client = Client::new(endpoint).with_timeout(timeout).with_answer_limit(MAX_INPUT_BYTES);
        if !origin.starts_with("https:") {
            return Ok(Self { client, witness: None });
        }
        let (witness, config) = witness::observed_tls()
            .map_err(|error| Failure::new("verify/tls", format!("setting up TLS: {error}"), "report this defect"))?;
        Ok(Self { client: client.with_tls(config), witness: Some(witness) })
    }

    async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        let answer = self.client.get(path).await?;
        Ok(Reply { status: answer.status, body: answer.body })
    }

    /// Text of an optional paper: anything but a success is none.
    async fn text(&self, path: &str) -> Option<String> {
        let reply = self.get(path).await.ok().filter(|reply| reply.status == StatusCode::OK)?;
        String::from_utf8(reply.body).ok()
    }
}

struct Reply {
    status: StatusCode,
    body: Vec<u8>,
}

impl Reply {
    /// The body, if it is JSON with something to judge in it.
    ///
    /// Errors: a server that says why it shows nothing.
    fn evidence(&self, is_ours: bool) -> Outcome<Option<Vec<u8>>> {
        if self.status != StatusCode::OK {
            return Ok(None);
        }
        // Many web servers answer every path with a page.
        let is_object = self.body.trim_ascii_start().first() == Some(&b'{');
        let has = |name: &str| self.body.windows(name.len()).any(|window| window == name.as_bytes());
        let is_evidence = is_object && (has("\"quote\"") || has("\"attestation\"") || (!is_ours && has("\"app_cert\"")));
        Ok(is_evidence.then(|| self.body.clone()))
    }
}
