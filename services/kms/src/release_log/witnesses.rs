//! Asking witnesses to sign, as C2SP tlog-witness has it.
//!
//! Releases do not wait for witnesses: a witness that is away delays what watchers can rely on, not a boot.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use dstack_release_log::{AddCheckpoint, Cosigner, Hash, prove_tree};
use dstack_rpc::{Client, Endpoint};
use dstack_service::text::clean;
use http::{HeaderMap, Method, StatusCode};

use super::{ReleaseLog, serve::StoredHashes, writer::Shared};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// Pause between two looks at the log.
const PERIOD: Duration = Duration::from_secs(1);

/// A witness as configured.
#[derive(Debug, Clone)]
pub(crate) struct WitnessSettings {
    pub(crate) endpoint: Endpoint,
    pub(crate) cosigner: Cosigner,
}

/// One witness and what is known of it.
struct Witness {
    client: Client,
    cosigner: Cosigner,
    /// Size that it signed last, as far as known.
    seen: u64,
}

impl Witness {
    fn new(settings: &WitnessSettings) -> Self {
        let client = Client::new(settings.endpoint.clone()).with_tls(dstack_rpc::system_tls());
        let client = client.with_timeout(TIMEOUT).with_answer_limit(MAX_ANSWER_BYTES);
        Self { client, cosigner: settings.cosigner.clone(), seen: 0 }
    }

    /// Its signature line over `note`, the checkpoint of a tree of `size`.
    async fn cosign(&mut self, shared: &Arc<Shared>, note: &str, size: u64) -> Result<String, String> {
        let mut last = String::new();
        // A second attempt where the witness has seen another size than was thought.
        for _ in 0..2 {
            let request = AddCheckpoint { old_size: self.seen, proof: prove(shared, size, self.seen).await?, checkpoint: note.to_owned() };
            let path = format!("{}/add-checkpoint", self.client.endpoint().base());
            let answer = self.client.request(Method::POST, &path, HeaderMap::new(), request.encode().into_bytes()).await;
            let answer = answer.map_err(|error| dstack_service::report::Report::new(&error).cause)?;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            match answer.status {
                StatusCode::OK => {
                    let line = self.cosigner.pick(&body, note).ok_or("its answer is not its signature over this checkpoint")?;
                    self.seen = size;
                    return Ok(line.to_owned());
                }
                StatusCode::CONFLICT => {
                    self.seen = body.trim().parse().map_err(|_| "its answer names no size")?;
                    if self.seen > size {
                        return Err(format!("it has signed {} entries and the log has {size}: entries were lost", self.seen));
                    }
                    last = format!("it has signed {} entries", self.seen);
                }
                status => return Err(format!("HTTP {status}: {}", clean(&body, 300))),
            }
        }
        Err(last)
    }
}

async fn prove(shared: &Arc<Shared>, size: u64, old: u64) -> Result<Vec<Hash>, String> {
    if old == 0 || old == size {
        return Ok(Vec::new());
    }
    let shared = Arc::clone(shared);
    let proof = tokio::task::spawn_blocking(move || prove_tree(size, old, &StoredHashes(&shared.hashes))).await;
    proof.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

impl ReleaseLog {
    /// Has every new checkpoint signed, until dropped.
    pub(crate) fn witnessing(&self, witnesses: &[WitnessSettings]) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let mut witnesses: Vec<Witness> = witnesses.iter().map(Witness::new).collect();
        async move {
            let mut signed = 0;
            let mut ticks = tokio::time::interval(PERIOD);
            while !witnesses.is_empty() {
                ticks.tick().await;
                let (note, size) = {
                    let published = shared.published.read().unwrap_or_else(PoisonError::into_inner);
                    (published.note.clone(), published.size)
                };
                if size == signed {
                    continue;
                }
                signed = size;
                let mut witnessed = note.clone();
                for witness in &mut witnesses {
                    match witness.cosign(&shared, &note, size).await {
                        Ok(line) => witnessed.push_str(&format!("{line}\n")),
                        Err(error) => tracing::warn!(witness = witness.cosigner.name(), error, "a witness does not sign"),
                    }
                }
                if witnessed != note {
                    shared.published.write().unwrap_or_else(PoisonError::into_inner).witnessed = Some(witnessed);
                }
            }
        }
    }
}
