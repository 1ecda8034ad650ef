//! JSON event logs: what is accepted reads back the same, and its stripped form gives the same registers.
#![no_main]

use dstack_event_log::{Event, EventLog, RuntimeEvent};
use dstack_fuzz as _;
use libfuzzer_sys::fuzz_target;

/// Entries that are put in words.
const DESCRIBED: usize = 32;

fuzz_target!(|text: &str| {
    for line in text.lines() {
        if let Ok(event) = parse_line(line) {
            assert_eq!(event.to_event().checked_digest(0).ok(), Some(event.digest()));
        }
    }
    let Ok(log) = EventLog::parse_json(text) else { return };
    let again = EventLog::parse_json(&log.to_json()).expect("own JSON");
    assert_eq!(again.registers(), log.registers());
    let stripped = log.events().iter().map(Event::stripped).collect();
    assert_eq!(EventLog::new(stripped).expect("stripped form").registers(), log.registers());
    assert_eq!(log.check_registers(log.registers()), Ok(()));
    assert_eq!(log.first_divergence(again.events(), 0..4), None);
    for (index, event) in log.events().iter().enumerate().take(DESCRIBED) {
        let words = log.describe(index).expect("an entry");
        assert!(!words.chars().any(char::is_control), "control characters for a terminal");
        let _ = event.payload_is_measured();
    }
    let _ = (log.boot_time_rtmr3(), log.boot_payload("app-id"));
});

/// A line of the guest's runtime log.
fn parse_line(line: &str) -> Result<RuntimeEvent, serde_json::Error> {
    serde_json::from_str(line)
}
