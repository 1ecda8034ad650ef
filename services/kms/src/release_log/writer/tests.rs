#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_release_log::LogVerifier;
use rand_core::OsRng;

use super::*;

fn open(dir: &Path, keys: &RootKeys) -> ReleaseLog {
    ReleaseLog::open(dir, keys, &"kms.test".parse().unwrap(), 1000).unwrap()
}

fn entry(number: u64) -> Entry {
    Entry { request_id: number.to_string(), ..Entry::new(EventKind::Release, number) }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_releases_share_writes_and_each_has_its_proof() {
    let (directory, keys) = (tempfile::tempdir().unwrap(), RootKeys::generate(&mut OsRng));
    let log = Arc::new(open(directory.path(), &keys));
    let verifier = LogVerifier::parse(&log.document.verifier_key).unwrap();

    let appends = (0..300).map(|number| {
        let log = Arc::clone(&log);
        tokio::spawn(async move { (number, log.append(&entry(number)).await.unwrap()) })
    });
    let mut places = Vec::new();
    let mut checkpoints = std::collections::BTreeSet::new();
    for append in appends.collect::<Vec<_>>() {
        let (number, proof) = append.await.unwrap();
        let proof = ReleaseProof::parse(&proof).unwrap();
        checkpoints.insert(proof.verify(&verifier).unwrap().head.size);
        assert_eq!(Entry::parse(&proof.entry).unwrap(), entry(number));
        places.push(proof.index);
    }

    places.sort_unstable();
    assert_eq!(places, (1..=300).collect::<Vec<_>>(), "entry 0 is the start");
    assert!(checkpoints.len() < 300, "{} writes for 300 entries", checkpoints.len());
    assert_eq!(log.size(), 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_restart_and_signed_by_the_same_key() {
    let (directory, keys) = (tempfile::tempdir().unwrap(), RootKeys::generate(&mut OsRng));
    let log = open(directory.path(), &keys);
    log.append(&entry(1)).await.unwrap();
    assert!(log.note(&entry(2)));
    let document = log.document.clone();
    drop(log);

    let log = open(directory.path(), &keys);

    assert_eq!(log.size(), 4, "two starts, a release, a note");
    assert_eq!(log.document.verifier_key, document.verifier_key);
    assert!(log.is_ready().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_logs_of_one_root_have_two_keys() {
    let keys = RootKeys::generate(&mut OsRng);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());

    assert_ne!(open(one.path(), &keys).document.verifier_key, open(two.path(), &keys).document.verifier_key);
}
