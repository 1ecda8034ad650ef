#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use rand_core::OsRng;

use super::*;

const NOW: u64 = 1_800_000_000;
const TEN_YEARS: u64 = 3650 * 86_400;

fn root(byte: u8) -> P256Key {
    P256Key::from_scalar(&Secret::new([byte; 32])).unwrap()
}

fn numbers(epochs: &Epochs, now: u64) -> Vec<u32> {
    epochs.readable(now).map(|epoch| epoch.number).collect()
}

#[test]
fn replicas_of_one_root_agree_on_the_first_epoch() {
    assert_eq!(Epochs::first(&root(1)), Epochs::first(&root(1)));
    assert_ne!(Epochs::first(&root(1)), Epochs::first(&root(2)));
}

#[test]
fn old_and_new_are_readable_within_the_window_only() {
    let mut epochs = Epochs::first(&root(1));

    assert_eq!(epochs.rotate(&mut OsRng, NOW, 100, 50), Ok(2));

    let current = |at| epochs.current(at).unwrap().number;
    assert_eq!((current(NOW), current(NOW + 99), current(NOW + 100)), (1, 1, 2));
    assert_eq!(numbers(&epochs, NOW), [1, 2], "the announced epoch can be prepared for");
    assert_eq!(numbers(&epochs, NOW + 149), [1, 2]);
    assert_eq!(numbers(&epochs, NOW + 150), [2]);
}

#[test]
fn a_clock_that_is_ten_years_off_loses_no_seed() {
    let mut epochs = Epochs::first(&root(1));
    epochs.rotate(&mut OsRng, NOW, 100, 50).unwrap();

    assert_eq!(numbers(&epochs, NOW + TEN_YEARS), [2]);
    assert_eq!(epochs.current(NOW - TEN_YEARS).unwrap().number, 1);
    assert_eq!(epochs.all().len(), 2);
}

#[test]
fn a_second_rotation_waits_for_the_first() {
    let mut epochs = Epochs::first(&root(1));
    epochs.rotate(&mut OsRng, NOW, 100, 50).unwrap();

    assert_eq!(epochs.rotate(&mut OsRng, NOW + 99, 0, 0), Err(EpochError::Pending { number: 2, active_from: NOW + 100 }));
    assert_eq!(epochs.rotate(&mut OsRng, NOW + 100, 0, 0), Ok(3));
}

#[test]
fn no_more_than_the_limit_is_kept_and_a_refusal_changes_nothing() {
    let mut epochs = Epochs::first(&root(1));
    for _ in 1..MAX_EPOCHS {
        epochs.rotate(&mut OsRng, NOW, 0, 10).unwrap();
    }
    let before = epochs.encode();

    assert_eq!(epochs.rotate(&mut OsRng, NOW, 0, 10), Err(EpochError::Full));
    assert_eq!(epochs.rotate(&mut OsRng, NOW, u64::MAX, 10), Err(EpochError::Times));
    assert_eq!(epochs.encode(), before);
}

#[test]
fn a_replica_takes_over_what_it_lacks() {
    let (mut ours, mut theirs) = (Epochs::first(&root(1)), Epochs::first(&root(1)));
    theirs.rotate(&mut OsRng, NOW, 100, 50).unwrap();
    let copy = Epochs::decode(&theirs.encode()).unwrap();

    assert_eq!(ours.merge(copy), Ok(true));
    assert_eq!(ours, theirs);
    assert_eq!(ours.merge(Epochs::decode(&theirs.encode()).unwrap()), Ok(false));
}

#[test]
fn two_rotations_apart_are_a_fork_and_nothing_is_mixed() {
    let (mut ours, mut theirs) = (Epochs::first(&root(1)), Epochs::first(&root(1)));
    ours.rotate(&mut OsRng, NOW, 100, 50).unwrap();
    theirs.rotate(&mut OsRng, NOW, 100, 50).unwrap();
    let before = ours.encode();

    assert_eq!(ours.merge(theirs), Err(EpochError::Fork { number: 2 }));
    assert_eq!(ours.encode(), before);
}

#[test]
fn the_stored_form_is_read_back_and_nothing_else_is() {
    let mut epochs = Epochs::first(&root(1));
    epochs.rotate(&mut OsRng, NOW, 100, 50).unwrap();
    let bytes = epochs.encode();

    assert_eq!(Epochs::decode(&bytes).unwrap(), epochs);
    assert_eq!(bytes.len(), 8 + 2 * 52);
    for cut in [0, 7, 8, bytes.len() - 1] {
        assert_eq!(Epochs::decode(&bytes[..cut]), Err(EpochError::Malformed), "{cut}");
    }
    let swapped = [&bytes[..8], &bytes[60..], &bytes[8..60]].concat();
    assert_eq!(Epochs::decode(&swapped), Err(EpochError::Malformed), "numbers must rise");
}
