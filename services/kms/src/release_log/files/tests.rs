#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_api::UserFacing as _;
use dstack_release_log::EventKind;

use super::*;

fn open_in(dir: &Path) -> Result<(Files, LogKey), ReleaseLogError> {
    Files::open(dir, |_| Ok(LogKey::new("kms.test/log/1", &[7; 32])?))
}

fn entry(number: u64) -> Vec<u8> {
    Entry::new(EventKind::Release, number).encode().unwrap()
}

/// A log with `count` entries, the first `signed` of them signed.
fn filled(dir: &Path, count: u64, signed: u64) -> Frontier {
    let (mut files, key) = open_in(dir).unwrap();
    for number in 0..count {
        files.append(&[entry(number)]).unwrap();
        if number + 1 == signed {
            files.keep_checkpoint(&key.sign(files.frontier.head()));
        }
    }
    files.cut().unwrap();
    files.frontier
}

#[test]
fn entries_land_where_the_file_has_room_already() {
    let directory = tempfile::tempdir().unwrap();
    let (mut files, _) = open_in(directory.path()).unwrap();
    let length = |files: &Files| files.entries.metadata().unwrap().len();
    files.append(&[entry(0)]).unwrap();
    let reserved = length(&files);

    let mut count = 1;
    while files.entries_bytes + 100 < reserved {
        files.append(&[entry(count)]).unwrap();
        count += 1;
        assert_eq!(length(&files), reserved, "after {count} entries");
    }
    for _ in 0..10 {
        files.append(&[entry(count)]).unwrap();
        count += 1;
    }

    assert!(length(&files) > reserved, "and more is made when it is used up");
    drop(files);
    let (files, _) = open_in(directory.path()).unwrap();
    assert_eq!(files.frontier.size(), count);
    assert_eq!(length(&files), files.entries_bytes, "zeros are no entries");
}

#[test]
fn a_log_is_what_it_was_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("log");
    let before = filled(&dir, 600, 300);
    let hashes = fs::read(dir.join("hashes")).unwrap();

    let (mut files, _) = open_in(&dir).unwrap();

    assert_eq!(files.frontier, before);
    assert_eq!(files.bundle_offsets.len(), 3);
    assert_eq!(fs::read(dir.join("hashes")).unwrap(), hashes);
    let offsets = files.bundle_offsets.clone();
    files.append(&[entry(600)]).unwrap();
    assert_eq!(files.bundle_offsets, offsets, "entry 600 begins no bundle");
}

#[test]
fn what_was_being_written_at_a_crash_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let before = filled(directory.path(), 5, 3);
    let path = directory.path().join("entries");
    let good = fs::read(&path).unwrap();
    let record = encode_record(&entry(5)).unwrap();
    for torn in [&record[..1], &record[..2], &record[..record.len() - 1], &[0; 700]] {
        fs::write(&path, [good.as_slice(), torn].concat()).unwrap();

        let (files, _) = open_in(directory.path()).unwrap();

        assert_eq!(files.frontier, before);
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[test]
fn a_whole_entry_that_was_not_signed_yet_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 5, 3);

    assert_eq!(open_in(directory.path()).unwrap().0.frontier.size(), 5);
}

#[test]
fn other_entries_than_were_signed_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 5, 5);
    let path = directory.path().join("entries");
    let good = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        open_in(directory.path()).err().unwrap()
    };

    let mut changed = good.clone();
    changed[20] ^= 1;
    assert_eq!(refused(&changed).code(), "kms/release-log-damaged");
    assert_eq!(refused(&good[..good.len() - 1]).code(), "kms/release-log-damaged");
    assert_eq!(refused(b"").code(), "kms/release-log-damaged");
    fs::write(&path, &good).unwrap();
    assert!(open_in(directory.path()).is_ok());
    let other = LogKey::new("kms.test/log/1", &[8; 32]).unwrap();
    fs::write(directory.path().join("checkpoint"), other.sign(Frontier::default().head())).unwrap();
    assert_eq!(open_in(directory.path()).err().unwrap().code(), "kms/release-log-damaged");
}

#[test]
fn each_directory_is_its_own_log() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id_of = |dir: &Path| {
        let mut found = LogId::default();
        Files::open(dir, |id| {
            found = *id;
            Ok(LogKey::new("kms.test/log/1", &[7; 32])?)
        })
        .unwrap();
        found
    };

    assert_eq!(id_of(one.path()), id_of(one.path()));
    assert_ne!(id_of(one.path()), id_of(two.path()));
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (mut files, _) = open_in(directory.path()).unwrap();
    files.append(&[entry(0)]).unwrap();
    let before = files.frontier.clone();
    files.entries = Arc::new(OpenOptions::new().write(true).open("/dev/full").unwrap());

    let error = files.append(&[entry(1)]).err().unwrap();

    assert!(matches!(&error, ReleaseLogError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error:?}");
    assert_eq!(files.frontier, before);
    // What is no file cannot be cut back, so nothing more is believed to be written.
    assert!(matches!(files.append(&[entry(1)]), Err(ReleaseLogError::Stopped { .. })));
}
