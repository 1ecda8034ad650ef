#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use rand_core::OsRng;

use super::*;

fn recipients(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("age1custodian{number}")).collect()
}

fn root() -> (RootKeys, Epochs) {
    let root = RootKeys::generate(&mut OsRng);
    let epochs = Epochs::first(&root.ca);
    (root, epochs)
}

fn create(threshold: usize, count: usize) -> ((RootKeys, Epochs), SignedSet, Vec<RecoveryShare>) {
    let (root, mut epochs) = root();
    epochs.rotate(&mut OsRng, 5, 0, 9).unwrap();
    let (set, shares) = SignedSet::create((&root, &epochs), threshold, &recipients(count), 7, &mut OsRng).unwrap();
    ((root, epochs), set, shares)
}

#[test]
fn any_threshold_of_custodians_brings_root_and_epochs_back() {
    let ((root, epochs), set, shares) = create(3, 5);
    for chosen in [[0, 1, 2], [0, 2, 4], [4, 3, 1]] {
        let chosen: Vec<&RecoveryShare> = chosen.iter().map(|index: &usize| &shares[*index]).collect();

        let recovered = set.restore(&chosen).unwrap();

        assert_eq!(recovered.root.ca.scalar(), root.ca.scalar());
        assert_eq!(recovered.root.k256.scalar(), root.k256.scalar());
        assert_eq!(recovered.epochs, epochs);
    }
    assert!(set.restore(&shares.iter().collect::<Vec<_>>()).is_ok());
}

#[test]
fn fewer_than_the_threshold_bring_nothing_back() {
    let (_, set, shares) = create(3, 5);

    assert_eq!(set.restore(&[&shares[0], &shares[1]]).unwrap_err(), RecoveryError::TooFew { got: 2, threshold: 3 });
    let mut lowered = set.clone();
    lowered.set.threshold = 2;
    assert_eq!(lowered.restore(&[&shares[0], &shares[1]]).unwrap_err(), RecoveryError::Signature);
    let two = combine(&[&shares[0], &shares[1]]).unwrap();
    assert_eq!(open_bundle(&two, &set.set).unwrap_err(), RecoveryError::OtherRoot);
}

#[test]
fn a_share_of_another_custodian_or_set_is_told_apart() {
    let (_, set, shares) = create(2, 3);
    let (_, _, others) = create(2, 3);

    assert_eq!(set.check_share(1, &shares[1]), Ok(()));
    assert_eq!(set.check_share(0, &shares[1]), Err(RecoveryError::Share));
    assert_eq!(set.check_share(1, &others[1]), Err(RecoveryError::Share));
    assert_eq!(set.check_share(3, &shares[1]), Err(RecoveryError::Share));
    assert!(set.restore(&[&shares[0], &others[1]]).is_err());
    assert!(set.restore(&[&shares[0], &shares[0]]).is_err());
}

#[test]
fn every_field_of_a_set_is_signed() {
    let (_, set, _) = create(2, 3);
    let changes: [fn(&mut ShareSet); 7] = [
        |set| set.set_id[0] ^= 1,
        |set| set.created_at += 1,
        |set| set.threshold = 3,
        |set| set.custodians[0].recipient.push('x'),
        |set| set.custodians[0].commitment[0] ^= 1,
        |set| set.ca_pubkey[30] ^= 1,
        |set| set.bundle[20] ^= 1,
    ];
    assert_eq!(set.verify(), Ok(()));
    for (index, change) in changes.into_iter().enumerate() {
        let mut changed = set.clone();
        change(&mut changed.set);

        assert_eq!(changed.verify(), Err(RecoveryError::Signature), "change {index}");
    }
    let mut of_another = set.clone();
    of_another.set.k256_pubkey = root().0.k256.public_key().to_vec();
    assert_eq!(of_another.verify(), Err(RecoveryError::Signature));
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let (root, epochs) = root();
    let create = |threshold, recipients: &[String]| SignedSet::create((&root, &epochs), threshold, recipients, 0, &mut OsRng).map(|_| ());
    for (threshold, count) in [(0, 3), (1, 3), (4, 3), (2, 1), (2, 0), (2, MAX_CUSTODIANS + 1)] {
        assert_eq!(create(threshold, &recipients(count)), Err(RecoveryError::Numbers { threshold, custodians: count }));
    }
    let twice = vec!["age1x".to_owned(), "age1y".to_owned(), "age1x".to_owned()];
    assert_eq!(create(2, &twice), Err(RecoveryError::SameRecipient { recipient: "age1x".into() }));
    assert_eq!(create(MAX_CUSTODIANS, &recipients(MAX_CUSTODIANS)), Ok(()));
}

#[test]
fn a_file_is_read_back_and_a_changed_one_is_not() {
    let (_, signed, _) = create(2, 3);
    let file = ShareFile { signed, custodian: 1, share: vec![1, 2, 3] };
    let text = file.to_text();

    assert_eq!(ShareFile::parse(&text).unwrap(), file);
    assert_eq!(ShareFile::parse(&text.replace("\"threshold\": 2", "\"threshold\": 3")).unwrap_err(), RecoveryError::Signature);
    for bad in ["", "{}", &text.replace("\"custodian\": 1", "\"custodian\": 3"), &text.replace("\"version\": 1", "\"version\": 2")] {
        assert!(matches!(ShareFile::parse(bad), Err(RecoveryError::Malformed { .. })), "{bad}");
    }
}
