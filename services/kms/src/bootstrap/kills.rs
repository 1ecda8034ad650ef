//! `kill -9` at random points of bootstrap, onboarding and rotation: what is found afterwards is the old state or the new one.
//!
//! The victim is this test program itself in another process: it makes one KMS after the other and rotates epochs of each, and writes down
//! what it begins and what it has finished. Its killer compares.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dstack_key_hierarchy::{K256Key, P256Key, Secret};
use rand_core::RngCore as _;

use super::*;
use crate::{key_store::write_secret, sealing::Kind};

const KILLS: u32 = 100;
/// Victims at a time: most of a life is waiting for the process to start and for its death.
const KILLERS: u32 = 4;
/// A life ends at a random moment after this many steps at most: in the first KMS, made there, or in the second, received.
const MAX_STEPS: u32 = 14;
/// Of the moment: long enough to reach into the next step.
const MAX_DELAY_MICROSECONDS: u32 = 3000;
/// `begin 0 0` and its like have at least this many bytes.
const STEP_BYTES: u64 = 8;
const ROTATIONS: usize = 4;
const NOW: u64 = 1_800_000_000;
const THIS_TEST: &str = "bootstrap::kills::killed_at_any_point_the_old_or_the_new_state_is_found";
/// Set in the victim: where it works.
const VICTIM: &str = "DSTACK_KMS_TEST_VICTIM";

/// A death of the process loses nothing that is written, so memory will do, which syncs at once.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn vault() -> Vault {
    Vault::under(Kind::SoftwareTee, &Secret::new([1; 32]))
}

fn at<T>(dir: &Path, act: impl FnOnce(&Site<'_>) -> T) -> T {
    act(&Site { dir, vault: &vault(), domain: &"kms.test".parse().unwrap(), attest: &|_| Ok(None), now: NOW })
}

/// Keys that come from another KMS, the same each time.
fn received() -> NewKeys {
    let ca = P256Key::from_scalar(&Secret::new([2; 32])).unwrap();
    let epochs = Some(Epochs::first(&ca));
    let root = RootKeys { ca, k256: K256Key::from_scalar(&Secret::new([3; 32])).unwrap() };
    NewKeys { root, temp: CertKey::generate().unwrap(), epochs, origin: Origin::Brought(None) }
}

/// Makes KMSs and rotates their epochs until it is killed.
fn be_victim(base: &Path) {
    let mut steps = OpenOptions::new().append(true).open(base.join("steps")).unwrap();
    // In one write: a kill must not leave half a line.
    let mut say = |line: String| steps.write_all(line.as_bytes()).unwrap();
    for number in 0.. {
        let dir = base.join(format!("{number}/kms"));
        say(format!("begin {number} 0\n"));
        let store = if number % 2 == 0 { at(&dir, |site| site.load_or_create()) } else { at(&dir, |site| site.create(&received())) };
        let mut epochs = store.unwrap().epochs.into_inner().unwrap();
        say(format!("end {number} 0\n"));
        for rotation in 1..=ROTATIONS {
            epochs.rotate(&mut OsRng, NOW, 0, 10).unwrap();
            say(format!("begin {number} {rotation}\n"));
            write_secret(&dir, EPOCHS, &epochs.encode(), &vault()).unwrap();
            say(format!("end {number} {rotation}\n"));
        }
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a victim work on `base` for a random time.
fn must_live_and_die(base: &Path) {
    fs::write(base.join("steps"), "").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([THIS_TEST, "--exact"])
        .env(VICTIM, base)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut victim = Running(child.unwrap());
    let started = Instant::now();
    let steps = u64::from(1 + OsRng.next_u32() % MAX_STEPS);
    while fs::metadata(base.join("steps")).unwrap().len() < steps * STEP_BYTES {
        assert!(victim.0.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "the victim does not go on");
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_micros((OsRng.next_u32() % MAX_DELAY_MICROSECONDS).into()));
}

/// The step that was under way, or that was finished last: number, rotation, whether it was finished.
fn last_step(base: &Path) -> (u32, usize, bool) {
    let mut text = String::new();
    File::open(base.join("steps")).unwrap().read_to_string(&mut text).unwrap();
    let line = text.lines().next_back().unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let [word, number, rotation] = words.as_slice() else { panic!("{line}") };
    (number.parse().unwrap(), rotation.parse().unwrap(), *word == "end")
}

#[test]
fn killed_at_any_point_the_old_or_the_new_state_is_found() {
    if let Some(base) = std::env::var_os(VICTIM) {
        be_victim(Path::new(&base));
    }
    let killers: Vec<_> = (0..KILLERS).map(|_| std::thread::spawn(|| must_find_old_or_new_state(KILLS / KILLERS))).collect();
    let (making, rotating) =
        killers.into_iter().map(|killer| killer.join().unwrap()).fold((0, 0), |sum, found| (sum.0 + found.0, sum.1 + found.1));
    assert!(making > 0 && rotating > 0, "the points do not lie inside the steps: {making} while making, {rotating} while rotating");
}

/// Kills so many victims. Returns how many died while they made a KMS and while they rotated.
fn must_find_old_or_new_state(kills: u32) -> (u32, u32) {
    let (mut making, mut rotating) = (0, 0);
    for _ in 0..kills {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        must_live_and_die(directory.path());
        let (last, rotation, is_finished) = last_step(directory.path());
        if !is_finished {
            *(if rotation == 0 { &mut making } else { &mut rotating }) += 1;
        }

        for number in 0..=last {
            let dir = directory.path().join(format!("{number}/kms"));
            let found = at(&dir, |site| site.load()).unwrap_or_else(|error| panic!("{number}, killed in {rotation} of {last}: {error:?}"));
            let Some(store) = found else {
                assert!(number == last && rotation == 0 && !is_finished, "KMS {number} of {last} is lost");
                let made = at(&dir, |site| site.load_or_create()).unwrap();
                assert_eq!(made.epochs.into_inner().unwrap().all().len(), 1, "the next start makes a new one");
                continue;
            };
            let epochs = store.epochs.into_inner().unwrap().all().len() - 1;
            let finished = if number < last {
                ROTATIONS
            } else if is_finished {
                rotation
            } else {
                rotation.saturating_sub(1)
            };
            let begun = if number < last { ROTATIONS } else { rotation };
            assert!((finished..=begun).contains(&epochs), "{epochs} rotations of {begun} begun, {finished} finished");
            if number % 2 == 1 {
                assert_eq!(store.keys.ca.scalar(), Secret::new([2; 32]));
            }
        }
    }
    (making, rotating)
}
