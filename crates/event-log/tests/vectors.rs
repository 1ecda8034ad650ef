//! Logs of genuine quotes, and what happens when one thing in them changes.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_event_log::{Event, EventLog, EventLogError, EventVersion, RUNTIME_EVENT_TYPE, Registers, RuntimeEvent};
use proptest::prelude::*;
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/logs/");

#[derive(Deserialize)]
struct Case {
    id: String,
    log: String,
    verdict: String,
    rtmr: [String; 4],
    #[serde(default)]
    runtime_events: std::collections::HashMap<String, Vec<String>>,
}

fn must_read(name: &str) -> String {
    std::fs::read_to_string(format!("{DATA}{}", name.trim_start_matches("logs/"))).unwrap()
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&must_read("cases.json")).unwrap()
}

fn registers(case: &Case) -> Registers {
    let parse = |text: &String| {
        let mut value = [0; 48];
        hex::decode_to_slice(text, &mut value).unwrap();
        value
    };
    Registers([parse(&case.rtmr[0]), parse(&case.rtmr[1]), parse(&case.rtmr[2]), parse(&case.rtmr[3])])
}

fn accepted(case: &Case) -> bool {
    EventLog::parse_json(&must_read(&case.log)).is_ok_and(|log| log.check_registers(&registers(case)).is_ok())
}

fn must_log(id: &str) -> (EventLog, Registers) {
    let case = cases().into_iter().find(|case| case.id == id).unwrap();
    (EventLog::parse_json(&must_read(&case.log)).unwrap(), registers(&case))
}

#[test]
fn genuine_logs_replay_and_changed_ones_do_not() {
    let cases = cases();
    assert!(cases.len() >= 17);
    for case in cases {
        match case.verdict.as_str() {
            "match" => assert!(accepted(&case), "{}", case.id),
            _ => assert!(!accepted(&case), "{}", case.id),
        }
    }
}

#[test]
fn runtime_events_are_found_by_name() {
    for case in cases().iter().filter(|case| case.verdict == "match") {
        let log = EventLog::parse_json(&must_read(&case.log)).unwrap();
        for name in ["app-id", "compose-hash", "instance-id", "key-provider"] {
            let expected = case.runtime_events.get(name).map(|payloads| hex::decode(&payloads[0]).unwrap());

            assert_eq!(log.boot_payload(name), expected, "{} {name}", case.id);
        }
    }
}

#[test]
fn swapped_payload_with_kept_digest_is_refused_although_it_would_replay() {
    let error = EventLog::parse_json(&must_read("payload-swapped-digest-kept.json")).unwrap_err();

    assert!(matches!(error, EventLogError::PayloadMismatch { ref name, .. } if name == "compose-hash"), "{error}");
}

#[test]
fn only_runtime_events_may_leave_their_digest_out() {
    let error = EventLog::parse_json(&must_read("stripped-boot-digest.json")).unwrap_err();

    assert!(matches!(error, EventLogError::DigestLength { got: 0, .. }), "{error}");
}

#[test]
fn mismatch_says_where_the_log_goes_beyond_the_quote() {
    let (log, quoted) = must_log("evl-9784999f");
    let mut events = log.events().to_vec();
    events.push(RuntimeEvent::new("late", b"".to_vec(), EventVersion::V1).to_event());
    let measured = log.events().iter().filter(|event| event.imr == 3).count();

    let mismatch = EventLog::new(events).unwrap().check_registers(&quoted).unwrap_err();

    assert_eq!((mismatch.register, mismatch.agrees_after), (3, Some(measured)));
}

#[test]
fn divergence_names_register_and_position() {
    let (log, _) = must_log("evl-9784999f");
    let mut reference = log.events().to_vec();
    assert_eq!(log.first_divergence(&reference, 0..4), None);
    let second_of_rtmr1 = reference.iter().enumerate().filter(|(_, event)| event.imr == 1).nth(1).unwrap().0;
    reference[second_of_rtmr1].digest = vec![0; 48];

    let divergence = log.first_divergence(&reference, 0..3).unwrap();

    let expected = divergence.expected.unwrap();
    assert_eq!((divergence.register, divergence.position, expected.index, expected.digest), (1, 1, second_of_rtmr1, Some([0; 48])));
    assert_eq!(log.first_divergence(&reference[..second_of_rtmr1], 1..2).unwrap().expected, None);
    assert_eq!(log.first_divergence(&reference, 2..4), None);
}

#[test]
fn events_after_system_ready_and_of_other_types_are_no_identity() {
    let event = |name: &str, payload: &[u8]| RuntimeEvent::new(name, payload, EventVersion::V1).to_event();
    let foreign_type = Event { event_type: 1, ..event("app-id", &[1; 20]) };
    let foreign_register = Event { imr: 2, ..event("app-id", &[2; 20]) };

    let log = EventLog::new(vec![foreign_type, foreign_register, event("system-ready", b""), event("app-id", &[3; 20])]).unwrap();

    assert_eq!(log.boot_payload("app-id"), None);
}

#[derive(Deserialize)]
struct DigestCase {
    name: String,
    payload: String,
    v1_preimage: String,
    v1_sha384: String,
    v2_preimage: String,
    v2_sha384: String,
}

#[test]
fn digests_of_both_versions_match_the_vectors() {
    let cases: Vec<DigestCase> = serde_json::from_str(&must_read("runtime_event_digests.json")).unwrap();
    for case in cases {
        let payload = hex::decode(&case.payload).unwrap();
        let (v1, v2) =
            (RuntimeEvent::new(&case.name, payload.clone(), EventVersion::V1), RuntimeEvent::new(&case.name, payload, EventVersion::V2));

        assert_eq!(hex::encode(v1.preimage()), case.v1_preimage, "{}", case.name);
        assert_eq!(hex::encode(v1.digest()), case.v1_sha384, "{}", case.name);
        assert_eq!(String::from_utf8(v2.preimage()).unwrap(), case.v2_preimage, "{}", case.name);
        assert_eq!(hex::encode(v2.digest()), case.v2_sha384, "{}", case.name);
    }
}

proptest! {
    #[test]
    fn json_keeps_events_of_both_versions(name in "\\PC{0,20}", payload in proptest::collection::vec(any::<u8>(), 0..60), v2 in any::<bool>()) {
        let version = if v2 { EventVersion::V2 } else { EventVersion::V1 };
        let event = RuntimeEvent::new(name, payload, version).to_event();

        let log = EventLog::new(vec![event.clone()]).unwrap();

        prop_assert_eq!(&EventLog::parse_json(&log.to_json()).unwrap(), &log);
        let stripped = EventLog::new(vec![event.stripped()]).unwrap();
        prop_assert_eq!(stripped.registers(), log.registers());
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,400}") {
        let _any_answer = EventLog::parse_json(&text);
    }

    #[test]
    fn no_event_makes_it_panic(imr in any::<u32>(), runtime in any::<bool>(), digest in proptest::collection::vec(any::<u8>(), 0..60)) {
        let event_type = if runtime { RUNTIME_EVENT_TYPE } else { 4 };
        let event = Event { imr, event_type, digest, event: String::new(), event_payload: Vec::new(), version: EventVersion::V1 };
        if let Ok(log) = EventLog::new(vec![event]) {
            let _any_answer = log.check_registers(&Registers::ZERO);
        }
    }
}
