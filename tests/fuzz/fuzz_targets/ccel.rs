//! Binary boot logs: what is accepted reads back the same, and every bank replays or says why not.
#![no_main]

use dstack_event_log::{BootLog, EventLog, HashAlgorithm};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

/// Entries that are put in words.
const DESCRIBED: usize = 32;

fuzz_target!(|data: &[u8]| {
    let Ok(log) = BootLog::parse(data) else { return };
    let bytes = log.to_bytes();
    assert!(bytes.len() <= data.len());
    let again = BootLog::parse(&bytes).expect("own bytes");
    assert_eq!(again.algorithms(), log.algorithms());
    assert_eq!(again.events().len(), log.events().len());
    for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512] {
        assert_eq!(again.replay(algorithm).ok(), log.replay(algorithm).ok());
    }
    let Ok(log) = EventLog::parse_ccel(data, &[]) else { return };
    for (index, event) in log.events().iter().enumerate().take(DESCRIBED) {
        let words = log.describe(index).expect("an entry");
        assert!(!words.chars().any(char::is_control), "control characters for a terminal");
        let _ = event.payload_is_measured();
    }
});
