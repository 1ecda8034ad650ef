//! The release log as everybody sees it: proofs with keys, tiles, checkpoints, witnesses; and what crashes and full disks do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests panic on purpose, and say what they skip")]

mod testbed;

use std::sync::{Arc, Mutex};

use axum::{Router, http::StatusCode, routing::post};
use dstack_api::{
    RpcError,
    kms::{AppKeyResponse, Empty, GetAppKeyRequest, KmsClient},
};
use dstack_key_hierarchy::{log_key_digest, recover};
use dstack_kms::config::WitnessFile;
use dstack_manifest::ComposeHash;
use dstack_release_log::{
    AddCheckpoint, Checkpoint, Cosigner, Entry, EventKind, Frontier, LogVerifier, ReleaseProof, WitnessKey, WitnessRefusal, WitnessState,
    entry_bundle_path, parse_bundle,
};
use dstack_rpc::{Client, Listener};
use testbed::{Guest, Stack, anonymous, connect, program::Program};

fn request() -> GetAppKeyRequest {
    GetAppKeyRequest { api_version: 1, ..Default::default() }
}

async fn get_app_key(url: &str, guest: &Guest) -> Result<AppKeyResponse, RpcError> {
    connect(url, guest).await.get_app_key(&request()).await
}

async fn text(client: &Client, path: &str) -> String {
    let answer = client.get(path).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{path}");
    String::from_utf8(answer.body).unwrap()
}

/// The log's key, as far as the KMS's root vouches for it.
async fn verifier(client: &Client) -> LogVerifier {
    let key: serde_json::Value = serde_json::from_str(&text(client, "/log/key").await).unwrap();
    let verifier_key = key["verifier_key"].as_str().unwrap();
    let signature = hex::decode(key["signature"].as_str().unwrap()).unwrap();
    let root = KmsClient(client.clone()).get_meta(&Empty {}).await.unwrap().k256_pubkey;
    assert_eq!(recover(&log_key_digest(verifier_key), &signature).unwrap().as_slice(), root);
    LogVerifier::parse(verifier_key).unwrap()
}

/// The whole log, read as a stranger does, with the checkpoint it agrees with.
async fn read_log(client: &Client) -> (Vec<Entry>, Checkpoint) {
    let checkpoint = verifier(client).await.open(&text(client, "/log/checkpoint").await).unwrap();
    let (mut entries, mut frontier) = (Vec::new(), Frontier::default());
    for number in 0.. {
        let Some(path) = entry_bundle_path(number, checkpoint.head.size) else { break };
        let answer = client.get(&format!("/log/{path}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let bundle = parse_bundle(&answer.body).unwrap();
        frontier.append(bundle.iter().copied());
        entries.extend(bundle.iter().map(|entry| Entry::parse(entry).unwrap()));
    }
    assert_eq!(frontier.head(), checkpoint.head);
    (entries, checkpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_release_carries_its_proof_and_each_refusal_has_its_entry() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let client = kms.anonymous();
    let guest = stack.guest(1);
    let mut denied = stack.guest(1);
    denied.compose_hash = ComposeHash::new([9; 32]);

    let keys = get_app_key(&kms.url, &guest).await.unwrap();
    assert!(get_app_key(&kms.url, &denied).await.is_err());
    assert!(KmsClient(client.clone()).get_app_key(&request()).await.is_err());
    get_app_key(&kms.url, &guest).await.unwrap();

    let proof = ReleaseProof::parse(&keys.release_proof).unwrap();
    proof.verify(&verifier(&client).await).unwrap();
    let entry = Entry::parse(&proof.entry).unwrap();
    assert_eq!((entry.app_id, entry.compose_hash), (guest.app_id.to_string(), guest.compose_hash.to_string()));
    assert_eq!((entry.method.as_str(), entry.policy.as_str(), entry.simulated), ("GetAppKey", "allow-list", true));
    let (entries, _) = read_log(&client).await;
    let seen: Vec<_> = entries.iter().map(|entry| (entry.event, entry.code.as_str())).collect();
    assert_eq!(
        seen,
        [
            (EventKind::Start, ""),
            (EventKind::Release, ""),
            (EventKind::Refusal, "kms/compose-hash-not-allowed"),
            (EventKind::Refusal, "kms/no-client-certificate"),
            (EventKind::Release, ""),
        ]
    );
    assert_eq!(entries[2].compose_hash, denied.compose_hash.to_string());
    assert!(entries[3].app_id.is_empty());
    let everything = serde_json::to_string(&entries).unwrap();
    for secret in [&keys.disk_crypt_key, &keys.env_crypt_key, &keys.k256_key] {
        assert!(!everything.contains(&hex::encode(secret)));
    }
    assert!(!everything.contains("127.0.0.1"), "who called from where is not everybody's business");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiles_are_those_of_the_tree_and_nothing_beyond_it() {
    let stack = Stack::start().await;
    let kms = stack.kms().await;
    let client = kms.anonymous();
    get_app_key(&kms.url, &stack.guest(1)).await.unwrap();

    let hashes = client.get("/log/tile/0/000.p/2").await.unwrap();

    assert_eq!((hashes.status, hashes.body.len()), (StatusCode::OK, 64));
    let cached = hashes.headers.get("cache-control").unwrap().to_str().unwrap().to_owned();
    assert!(cached.contains("immutable"), "{cached}");
    let entries = client.get("/log/tile/entries/000.p/2").await.unwrap().body;
    let first = parse_bundle(&entries).unwrap()[0].to_vec();
    assert_eq!(dstack_release_log::record_hash(&first).0, hashes.body[..32]);
    for path in [
        "tile/0/000",
        "tile/0/000.p/3",
        "tile/1/000.p/1",
        "tile/0/001.p/1",
        "tile/entries/000.p/3",
        "tile/entries/000.p/0",
        "tile/0/000.p/0",
        "tile/9/000",
        "tile/data/000",
        "tile/entries/..%2f..%2fid",
        "witnessed",
    ] {
        assert_eq!(client.get(&format!("/log/{path}")).await.unwrap().status, StatusCode::NOT_FOUND, "{path}");
    }
}

/// The process is killed as soon as it has answered; what it answered is in the log that the next one signs.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let stack = Stack::start().await;
    let mut proofs: Vec<ReleaseProof> = Vec::new();
    for _ in 0..3 {
        let kms = Program::start(&stack);
        let client = connect(&kms.url, &stack.guest(1)).await;
        for _ in 0..5 {
            proofs.push(ReleaseProof::parse(&client.get_app_key(&request()).await.unwrap().release_proof).unwrap());
        }
        drop(kms);
    }

    let kms = Program::start(&stack);
    let (entries, checkpoint) = read_log(&anonymous(&kms.url)).await;

    assert_eq!(checkpoint.head.size, 4 + 15);
    for proof in &proofs {
        let index = usize::try_from(proof.index).unwrap();
        assert_eq!(entries[index], Entry::parse(&proof.entry).unwrap(), "at the place that was proven");
        proof.verify(&verifier(&anonymous(&kms.url)).await).unwrap();
    }
}

/// A disk of its own for the log, in a mount namespace of the program's.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_releases_and_space_brings_them_back() {
    let stack = Stack::start().await;
    let Some(kms) = Program::start_on_small_disk(&stack, "kms-release-log") else {
        eprintln!("skipped: mount namespaces cannot be made here");
        return;
    };
    let client = connect(&kms.url, &stack.guest(1)).await;
    client.get_app_key(&request()).await.unwrap();
    let filler = kms.inside(&stack.path("kms-release-log/filler"));
    let full = std::fs::write(&filler, vec![7; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    // A page that is there already may take some entries; after that nothing goes out.
    let mut error = None;
    for _ in 0..200 {
        if let Err(refused) = client.get_app_key(&request()).await {
            error = Some(refused);
            break;
        }
    }
    let error = error.expect("keys go out although nothing can be logged");
    assert_eq!(error.code, "kms/release-log-unavailable");
    assert!(!error.message.contains("kms-release-log"), "paths are the operator's");
    assert!(client.get_app_key(&request()).await.is_err());
    let (before, _) = read_log(&anonymous(&kms.url)).await;
    assert_eq!(anonymous(&kms.url).get("/readyz").await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);

    std::fs::remove_file(&filler).unwrap();
    assert_eq!(anonymous(&kms.url).get("/readyz").await.unwrap().status, StatusCode::OK);
    client.get_app_key(&request()).await.expect("there is space again");
    let (after, _) = read_log(&anonymous(&kms.url)).await;
    assert_eq!(after[..before.len()], before);
    assert!(std::fs::read_to_string(&kms.log).unwrap().contains("nothing can be logged, so nothing is released"));
}

#[tokio::test(flavor = "multi_thread")]
async fn witnesses_sign_what_grew() {
    let stack = Stack::start().await;
    let key = Arc::new(WitnessKey::new("witness.test", &[3; 32]).unwrap());
    let cosigner = Cosigner::parse(&key.verifier_key()).unwrap();
    let state = Arc::new(Mutex::new(WitnessState::default()));
    let log: Arc<Mutex<Option<LogVerifier>>> = Arc::default();
    let (held, known) = (Arc::clone(&state), Arc::clone(&log));
    let witness = Router::new().route(
        "/add-checkpoint",
        post(move |body: String| async move {
            let Some(log) = known.lock().unwrap().clone() else { return (StatusCode::NOT_FOUND, String::new()) };
            let mut state = held.lock().unwrap();
            match state.cosign(&AddCheckpoint::parse(&body).unwrap(), &log, &key, 1234) {
                Ok((next, line)) => {
                    *state = next;
                    (StatusCode::OK, line)
                }
                Err(WitnessRefusal::OtherSize { seen }) => (StatusCode::CONFLICT, format!("{seen}\n")),
                Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            }
        }),
    );
    let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(dstack_rpc::serve(listener, witness, std::future::pending()));
    let mut settings = stack.settings();
    let verifier_key = WitnessKey::new("witness.test", &[3; 32]).unwrap().verifier_key();
    settings.release_log.witnesses = vec![WitnessFile { url, verifier_key }];
    let kms = stack.kms_with(settings.clone()).await;
    let client = kms.anonymous();
    *log.lock().unwrap() = Some(verifier(&client).await);

    let mut signed = 0;
    for _ in 0..2 {
        get_app_key(&kms.url, &stack.guest(1)).await.unwrap();
        signed = wait_for_signature(&client, &cosigner, signed + 1).await;
    }
    kms.stop().await;
    // The new process does not know what the witness has seen, and is told.
    let kms = stack.kms_with(settings).await;
    wait_for_signature(&kms.anonymous(), &cosigner, signed + 1).await;

    assert_eq!(state.lock().unwrap().seen.unwrap().size, 4);
}

/// Until a checkpoint of at least `size` entries is cosigned; its size.
async fn wait_for_signature(client: &Client, cosigner: &Cosigner, size: u64) -> u64 {
    let verifier = verifier(client).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let answer = client.get("/log/witnessed").await.unwrap();
        let note = String::from_utf8(answer.body).unwrap();
        if answer.status == StatusCode::OK {
            let checkpoint = verifier.open(&note).unwrap();
            assert_eq!(cosigner.signed_at(&note), Some(1234));
            if checkpoint.head.size >= size {
                return checkpoint.head.size;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "no witness signs");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
