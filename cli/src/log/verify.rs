//! `dstack log verify`.

use std::{fs, path::Path};

use dstack_release_log::{Cosigner, Entry, Frontier, Hash, LogVerifier, ReleaseProof};
use serde::{Deserialize, Serialize};

use super::{RemoteLog, args::LogVerifyArgs};
use crate::{
    failure::{Failure, Outcome},
    output::{Output, Tone, fields},
};

/// What is remembered between two runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    verifier_key: String,
    size: u64,
    hashes: Vec<String>,
}

#[derive(Serialize)]
struct Verdict {
    log: String,
    verifier_key: String,
    entries: u64,
    new_entries: u64,
    root: String,
    witnesses: Vec<String>,
}

/// Verifies a log, or one proof.
pub(super) async fn verify(args: &LogVerifyArgs, output: Output) -> Outcome {
    if let Some(proof) = &args.proof {
        return verify_proof(args, proof, output).await;
    }
    let mut log = RemoteLog::open(&args.log).await?;
    if let Some(frontier) = args.state.as_deref().map(|path| load(path, log.verifier())).transpose()?.flatten() {
        log = log.resume(frontier);
    }
    let before = log.frontier().size();
    let witnesses = verify_witnesses(args, &mut log).await?;
    let newest = log.checkpoint().await?;
    log.advance(newest.head, |_, _| ()).await?;
    if let Some(path) = &args.state {
        save(path, &log)?;
    }
    let verdict = Verdict {
        log: log.verifier().origin().to_owned(),
        verifier_key: log.verifier().to_string(),
        entries: newest.head.size,
        new_entries: newest.head.size - before,
        root: newest.head.root.to_string(),
        witnesses,
    };
    output.result(&verdict, |palette| {
        let rows = [
            ("log", verdict.log.clone()),
            ("key", verdict.verifier_key.clone()),
            ("entries", format!("{}, {} of them new", verdict.entries, verdict.new_entries)),
            ("root", verdict.root.clone()),
            ("witnesses", if verdict.witnesses.is_empty() { "none asked for".to_owned() } else { verdict.witnesses.join(", ") }),
        ];
        format!("{}\n{}", palette.paint(Tone::Good, "The log holds together and only grew."), fields(palette, &rows))
    })
}

/// The witnesses that signed, if enough did; what they signed is verified to be part of the log.
async fn verify_witnesses(args: &LogVerifyArgs, log: &mut RemoteLog) -> Outcome<Vec<String>> {
    let cosigners = cosigners(args)?;
    if cosigners.is_empty() {
        return Ok(Vec::new());
    }
    let Some((checkpoint, note)) = log.witnessed().await? else {
        return Err(Failure::new("log/not-witnessed", "no witness has signed this log yet", "configure release_log.witnesses of the KMS"));
    };
    let signed = enough(args, &cosigners, &note)?;
    // What was verified before may be newer than what the witnesses signed last.
    if checkpoint.head.size >= log.frontier().size() {
        log.advance(checkpoint.head, |_, _| ()).await?;
    }
    Ok(signed)
}

fn cosigners(args: &LogVerifyArgs) -> Outcome<Vec<Cosigner>> {
    let parse = |text: &String| {
        Cosigner::parse(text)
            .map_err(|error| Failure::usage("log/bad-witness", error.to_string(), "give the witness's verifier key: name+id+base64"))
    };
    args.witness.iter().map(parse).collect()
}

fn enough(args: &LogVerifyArgs, cosigners: &[Cosigner], note: &str) -> Outcome<Vec<String>> {
    let signed: Vec<String> =
        cosigners.iter().filter(|cosigner| cosigner.signed_at(note).is_some()).map(|cosigner| cosigner.name().to_owned()).collect();
    let needed = args.witnesses_needed.unwrap_or(cosigners.len());
    if signed.len() >= needed {
        return Ok(signed);
    }
    let cause = format!("{} of the witnesses signed ({}), {needed} are needed", signed.len(), signed.join(", "));
    Err(Failure::new("log/not-witnessed", cause, "wait until the witnesses have signed, then ask why they do not"))
}

async fn verify_proof(args: &LogVerifyArgs, path: &Path, output: Output) -> Outcome {
    let text = fs::read_to_string(path).map_err(|error| Failure::io("reading", path, &error))?;
    let verifier = match &args.log_key {
        Some(key) => LogVerifier::parse(key)
            .map_err(|error| Failure::usage("log/bad-key", error.to_string(), "give the log's verifier key: origin+id+base64"))?,
        None => RemoteLog::open(&args.log).await?.verifier().clone(),
    };
    let fails = |error: dstack_release_log::ProofError| {
        Failure::new("log/bad-proof", format!("{}: {error}", path.display()), "do not rely on this release; ask the KMS's operator")
    };
    let proof = ReleaseProof::parse(&text).map_err(fails)?;
    let checkpoint = proof.verify(&verifier).map_err(fails)?;
    enough(args, &cosigners(args)?, &proof.checkpoint)?;
    let entry = Entry::parse(&proof.entry)
        .map_err(|error| Failure::new("log/bad-entries", error.to_string(), "use the dstack command of the KMS's release"))?;
    output.result(&entry, |palette| {
        let rows = [
            ("log", checkpoint.origin.clone()),
            ("place", format!("{} of {}", proof.index, checkpoint.head.size)),
            ("entry", String::from_utf8_lossy(&proof.entry).into_owned()),
        ];
        format!("{}\n{}", palette.paint(Tone::Good, "The release is in the log."), fields(palette, &rows))
    })
}

fn load(path: &Path, verifier: &LogVerifier) -> Outcome<Option<Frontier>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io("reading", path, &error)),
    };
    let bad = |cause: &str| {
        Failure::new("log/bad-state", format!("{}: {cause}", path.display()), "restore the file, or name another to begin anew")
    };
    let state: State = serde_json::from_str(&text).map_err(|error| bad(&error.to_string()))?;
    if state.verifier_key != verifier.to_string() {
        let cause = format!("it was made with the log {}, and the KMS now has {verifier}", state.verifier_key);
        return Err(bad(&cause));
    }
    let hashes: Option<Vec<Hash>> = state.hashes.iter().map(|hash| Hash::parse_hash(hash).ok()).collect();
    let frontier = hashes.and_then(|hashes| Frontier::from_hashes(state.size, &hashes));
    frontier.map(Some).ok_or_else(|| bad("its hashes are not those of a tree of its size"))
}

fn save(path: &Path, log: &RemoteLog) -> Outcome {
    let hashes = log.frontier().hashes().iter().map(ToString::to_string).collect();
    let state = State { verifier_key: log.verifier().to_string(), size: log.frontier().size(), hashes };
    let text =
        serde_json::to_string_pretty(&state).map_err(|error| Failure::new("cli/internal", error.to_string(), "report this defect"))?;
    dstack_service::fs::write_atomic(path, text.as_bytes(), 0o644).map_err(|error| Failure::io("writing", path, &error))
}
