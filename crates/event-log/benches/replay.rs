//! Time to check and replay a log of 200 events, from memory and from its texts. Medians of seven rounds.
//!
//! Run: `cargo bench -p dstack-event-log`. One core. Exits with 1 above the promised 0.2 ms for the replay.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use dstack_event_log::{BootLog, Event, EventLog, EventVersion, HashAlgorithm, RuntimeEvent, replay};
use sha2::{Digest as _, Sha384};

const ROUNDS: usize = 7;
const REPEATS: u32 = 200;
const EVENTS: usize = 200;
const BOOT_EVENTS: usize = 20;
const PROMISED: Duration = Duration::from_micros(200);

/// As on a long-running guest: the boot's events, then application events of 64 bytes.
fn events() -> Vec<Event> {
    let boot = |index: usize| {
        let register = u32::try_from(index % 3).unwrap();
        let digest = Sha384::digest(index.to_le_bytes()).into();
        Event { event_payload: vec![0x41; 60], ..Event::boot(register, 0x8000_0007, &digest, "") }
    };
    let runtime = |index: usize| RuntimeEvent::new(format!("application-event-{index}"), vec![0x42; 64], EventVersion::V1).to_event();
    (0..BOOT_EVENTS).map(boot).chain((BOOT_EVENTS..EVENTS).map(runtime)).collect()
}

/// Median of the rounds' means.
fn measure<T>(work: impl Fn() -> T) -> Duration {
    black_box(work());
    let round = |_| {
        let started = Instant::now();
        (0..REPEATS).for_each(|_| {
            black_box(work());
        });
        started.elapsed() / REPEATS
    };
    let mut rounds = [0; ROUNDS].map(round);
    rounds.sort();
    rounds[ROUNDS / 2]
}

/// The least there is to do: the same hashes over the same bytes with the library, nothing else.
fn hashes_alone(events: &[Event]) -> [u8; 48] {
    events.iter().fold([0; 48], |value, event| {
        let digest: [u8; 48] = match event.as_runtime() {
            Some(_) => Sha384::new()
                .chain_update([1, 0, 0, 8])
                .chain_update(b":")
                .chain_update(&event.event)
                .chain_update(b":")
                .chain_update(&event.event_payload)
                .finalize()
                .into(),
            None => event.digest.as_slice().try_into().unwrap(),
        };
        Sha384::new().chain_update(value).chain_update(digest).finalize().into()
    })
}

fn main() -> ExitCode {
    let events = events();
    let log = EventLog::new(events.clone()).unwrap();
    let json = log.to_json();
    let tpm = include_bytes!("../tests/testdata/boot/dstack_tpm_eventlog.bin");

    let replayed = measure(|| replay(black_box(&events)));
    let least = measure(|| hashes_alone(black_box(&events)));
    let parsed = measure(|| EventLog::parse_json(black_box(&json)));
    let banks = measure(|| BootLog::parse(black_box(tpm)).unwrap().replay(HashAlgorithm::Sha256));

    println!("replay of {EVENTS} events: {replayed:?} (the hashes alone: {least:?}), promised at most {PROMISED:?}");
    println!("the same log from JSON of {} bytes, checked and replayed: {parsed:?}", json.len());
    println!("TPM log of {} bytes, 45 entries, three banks declared, parsed and one bank replayed: {banks:?}", tpm.len());
    ExitCode::from(u8::from(replayed > PROMISED))
}
