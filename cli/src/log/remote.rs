//! Reading a log that may lie: nothing is believed that does not lead to a signed root, and each root must extend the one before.

use dstack_key_hierarchy::{log_key_digest, recover};
use dstack_release_log::{BUNDLE_ENTRIES, Checkpoint, Entry, Frontier, LogVerifier, TreeHead, entry_bundle_path, parse_bundle};
use dstack_rpc::Client;
use serde::Deserialize;

use super::LogArgs;
use crate::{
    failure::{EXIT_UNDETERMINED, Failure, Outcome},
    home::Home,
    kms::Kms,
    output::printable,
    stack::LocalStack,
};

const LIES: &str = "keep what you have seen and tell everybody who relies on this KMS: its log is not what it was";

/// A log with what was verified of it.
#[derive(Debug)]
pub(crate) struct RemoteLog {
    client: Client,
    verifier: LogVerifier,
    frontier: Frontier,
}

/// What `/log/key` answers.
#[derive(Deserialize)]
struct KeyDocument {
    verifier_key: String,
    signature: String,
}

impl RemoteLog {
    /// The log of the KMS that `args` name, with the key that the KMS's root vouches for. Nothing of it is verified yet.
    ///
    /// Errors: not reachable, another KMS, or a key that is not vouched for.
    pub(crate) async fn open(args: &LogArgs) -> Outcome<Self> {
        let kms = match (&args.kms_url, &args.kms_ca) {
            (Some(url), Some(ca)) => Kms::connect(url, ca)?,
            _ => {
                let local = LocalStack::must_find(&Home::from_env()?)?;
                Kms::connect(&local.kms_url(), &local.kms_ca())?
            }
        };
        let client = kms.http().clone();
        let root = kms.meta().await?.k256_pubkey;
        let document: KeyDocument = serde_json::from_slice(&get(&client, "/log/key").await?).map_err(|error| {
            Failure::new("log/bad-key", format!("the key of the log is not understood: {error}"), "check the KMS's release")
        })?;
        let signer =
            hex::decode(&document.signature).ok().and_then(|signature| recover(&log_key_digest(&document.verifier_key), &signature));
        if signer.is_none_or(|signer| signer.as_slice() != root) {
            return Err(Failure::new("log/bad-key", "the key of the log is not vouched for by the KMS's root", "do not rely on this log"));
        }
        let verifier = LogVerifier::parse(&document.verifier_key)
            .map_err(|error| Failure::new("log/bad-key", error.to_string(), "do not rely on this log"))?;
        Ok(Self { client, verifier, frontier: Frontier::default() })
    }

    /// What its checkpoints are checked with.
    #[must_use]
    pub(crate) fn verifier(&self) -> &LogVerifier {
        &self.verifier
    }

    /// How far it was verified.
    #[must_use]
    pub(crate) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Goes on from what was verified earlier.
    #[must_use]
    pub(crate) fn resume(mut self, frontier: Frontier) -> Self {
        self.frontier = frontier;
        self
    }

    /// The newest checkpoint of the KMS.
    ///
    /// Errors: not reachable, or not signed by the log.
    pub(crate) async fn checkpoint(&self) -> Outcome<Checkpoint> {
        let note = String::from_utf8_lossy(&get(&self.client, "/log/checkpoint").await?).into_owned();
        self.verifier.open(&note).map_err(|error| Failure::new("log/bad-checkpoint", error.to_string(), LIES))
    }

    /// The newest checkpoint that a witness signed, with its signatures; none if there is none.
    ///
    /// Errors: not reachable, or not signed by the log.
    pub(crate) async fn witnessed(&self) -> Outcome<Option<(Checkpoint, String)>> {
        let answer = self.client.get("/log/witnessed").await.map_err(unreachable)?;
        if !answer.status.is_success() {
            return Ok(None);
        }
        let note = String::from_utf8_lossy(&answer.body).into_owned();
        let checkpoint = self.verifier.open(&note).map_err(|error| Failure::new("log/bad-checkpoint", error.to_string(), LIES))?;
        Ok(Some((checkpoint, note)))
    }

    /// Reads and verifies what lies between what was verified and `target`; gives each new entry with its place.
    ///
    /// Errors: the log shrank, forked, or does not hold the entries that it signed.
    pub(crate) async fn advance(&mut self, target: TreeHead, mut see: impl FnMut(u64, &Entry)) -> Outcome {
        let known = self.frontier.size();
        if target.size < known {
            let cause = format!("the log has {} entries, {known} were verified before", target.size);
            return Err(Failure::new("log/shrank", cause, LIES));
        }
        let mut frontier = self.frontier.clone();
        let mut new: Vec<(u64, Entry)> = Vec::new();
        for number in known / BUNDLE_ENTRIES.. {
            let first = number * BUNDLE_ENTRIES;
            let Some(path) = entry_bundle_path(number, target.size).filter(|_| frontier.size() < target.size) else { break };
            let bytes = get(&self.client, &format!("/log/{path}")).await?;
            let bundle = parse_bundle(&bytes).map_err(|error| Failure::new("log/bad-entries", error.to_string(), LIES))?;
            let width = (target.size - first).min(BUNDLE_ENTRIES);
            if bundle.len() as u64 != width {
                let cause = format!("bundle {number} has {} entries, {width} were asked for", bundle.len());
                return Err(Failure::new("log/bad-entries", cause, LIES));
            }
            let unseen = bundle.into_iter().zip(first..).filter(|(_, index)| *index >= known);
            let (entries, indexes): (Vec<&[u8]>, Vec<u64>) = unseen.unzip();
            frontier.append(entries.iter().copied());
            for (bytes, index) in entries.iter().zip(indexes) {
                let entry = Entry::parse(bytes).map_err(|error| {
                    let cause = format!("entry {index}: {error}: {}", printable(&String::from_utf8_lossy(bytes), 200));
                    Failure::new("log/bad-entries", cause, "use the dstack command of the KMS's release")
                })?;
                new.push((index, entry));
            }
        }
        if frontier.head() != target {
            let cause = format!("the {} entries of the log, {known} of them verified before, are not those that it signed", target.size);
            return Err(Failure::new("log/forked", cause, LIES));
        }
        self.frontier = frontier;
        new.iter().for_each(|(index, entry)| see(*index, entry));
        Ok(())
    }
}

async fn get(client: &Client, path: &str) -> Outcome<Vec<u8>> {
    let answer = client.get(path).await.map_err(unreachable)?;
    if answer.status.is_success() {
        return Ok(answer.body);
    }
    let cause = format!("{path}: HTTP {}", answer.status);
    Err(Failure::new("log/unavailable", cause, "check that the KMS is of a release with a log, then try again")
        .with_exit(EXIT_UNDETERMINED))
}

fn unreachable(error: dstack_rpc::ClientError) -> Failure {
    Failure::from(error).with_exit(EXIT_UNDETERMINED)
}

#[cfg(test)]
mod tests;
