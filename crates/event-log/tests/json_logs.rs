//! The JSON forms: what they carry, what they refuse, and their limits.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_event_log::{
    Event, EventLog, EventLogError, EventVersion, MAX_EVENTS, MAX_LOG_BYTES, Registers, RuntimeEvent, extend, names, parse_events, replay,
};
use serde_json::{Value, json};

const BOOT_DIGEST: [u8; 48] = [7; 48];

fn boot(imr: u32) -> Value {
    json!({"imr": imr, "event_type": 4, "digest": hex::encode(BOOT_DIGEST), "event": "", "event_payload": ""})
}

fn runtime(version: EventVersion) -> RuntimeEvent {
    RuntimeEvent::new("app-id", vec![0xde, 0xad], version)
}

fn must_value(event: &Event) -> Value {
    serde_json::to_value(event).unwrap()
}

/// The answer to a log with this one entry.
fn parsed(entry: &Value) -> Result<EventLog, EventLogError> {
    EventLog::parse_json(&json!([entry]).to_string())
}

/// The answer when one field of a valid entry changes.
fn parsed_with(entry: &Value, field: &str, value: Value) -> Result<EventLog, EventLogError> {
    let mut entry = entry.clone();
    entry[field] = value;
    parsed(&entry)
}

#[test]
fn version_2_entry_carries_version_and_preimage() {
    let preimage = hex::encode(r#"{"name":"app-id","payload":"dead","type":134217729}"#);

    let entry = must_value(&runtime(EventVersion::V2).to_event());

    assert_eq!((&entry["version"], &entry["preimage"]), (&json!(2), &json!(preimage)));
    assert_eq!(entry.as_object().unwrap().len(), 7);
    assert_eq!(must_value(&runtime(EventVersion::V1).to_event()).as_object().unwrap().len(), 5);
    assert_eq!(must_value(&Event { imr: 2, ..runtime(EventVersion::V2).to_event() }).as_object().unwrap().len(), 5);
}

/// One line of the guest's own log.
#[test]
fn line_of_a_runtime_event_names_version_2_only() {
    let line = |version| serde_json::to_value(runtime(version)).unwrap();

    assert_eq!(line(EventVersion::V1), json!({"event": "app-id", "payload": "3q0="}));
    assert_eq!(line(EventVersion::V2), json!({"event": "app-id", "payload": "3q0=", "version": 2}));
    for version in [EventVersion::V1, EventVersion::V2] {
        assert_eq!(serde_json::from_value::<RuntimeEvent>(line(version)).unwrap(), runtime(version));
    }
}

#[test]
fn version_2_digest_without_its_version_is_refused() {
    let mut entry = must_value(&runtime(EventVersion::V2).to_event());
    assert!(parsed(&entry).is_ok());
    entry.as_object_mut().unwrap().retain(|field, _| field != "version" && field != "preimage");

    assert!(matches!(parsed(&entry), Err(EventLogError::PayloadMismatch { index: 0, .. })));
}

#[test]
fn preimage_must_be_the_one_of_name_and_payload() {
    for version in [EventVersion::V1, EventVersion::V2] {
        let event = runtime(version);
        let entry = must_value(&event.to_event());
        let foreign = hex::encode(RuntimeEvent::new("app-id", vec![0xde, 0xae], version).preimage());

        assert!(parsed_with(&entry, "preimage", json!(hex::encode_upper(event.preimage()))).is_ok());
        assert!(matches!(parsed_with(&entry, "preimage", json!(foreign)), Err(EventLogError::Json { .. })));
    }
    assert!(parsed_with(&boot(0), "preimage", json!("of a boot event, ignored")).is_ok());
}

#[test]
fn renamed_event_with_kept_digest_is_refused() {
    let entry = must_value(&runtime(EventVersion::V1).to_event());

    let error = parsed_with(&entry, "event", json!("app-ie")).unwrap_err();

    assert_eq!(error, EventLogError::PayloadMismatch { index: 0, name: "app-ie".to_owned() });
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 3] {
        let line = json!({"event": "a", "payload": "", "version": version}).to_string();

        assert!(matches!(parsed_with(&boot(0), "version", json!(version)), Err(EventLogError::Json { .. })), "{version}");
        assert!(serde_json::from_str::<RuntimeEvent>(&line).is_err(), "{version}");
    }
}

#[test]
fn registers_of_a_td_are_0_to_3() {
    assert_eq!(parsed(&boot(3)).unwrap().registers().get(3), Some(&extend(&[0; 48], &BOOT_DIGEST)));
    assert_eq!(parsed(&boot(4)).unwrap_err(), EventLogError::NoSuchRegister { index: 0, imr: 4 });
    assert_eq!(parsed(&boot(u32::MAX)).unwrap_err(), EventLogError::NoSuchRegister { index: 0, imr: u32::MAX });
    assert_eq!(Registers::ZERO.get(4), None);
}

#[test]
fn boot_digest_of_another_length_is_refused() {
    for length in [0, 32, 47, 49] {
        let answer = parsed_with(&boot(1), "digest", json!("07".repeat(length)));

        assert_eq!(answer.unwrap_err(), EventLogError::DigestLength { index: 0, got: length });
    }
}

#[test]
fn missing_fields_are_empty_and_unknown_ones_ignored() {
    let event = runtime(EventVersion::V1);
    let short = json!({"imr": 3, "event_type": 134_217_729, "event": "app-id", "event_payload": "DEAD", "more": [1]});

    assert_eq!(parsed(&short).unwrap().registers(), EventLog::new(vec![event.to_event()]).unwrap().registers());
}

#[test]
fn full_form_of_a_stripped_log_has_every_digest() {
    let event = runtime(EventVersion::V2).to_event();
    let named = Event { event_payload: b"ACPI DATA".to_vec(), ..Event::boot(0, 10, &BOOT_DIGEST, "") };
    let other = Event { event_payload: b"other".to_vec(), ..named.clone() };
    let stripped: Vec<Event> = [&event, &named, &other].map(Event::stripped).to_vec();
    assert!(stripped[0].digest.is_empty());
    assert_eq!((&stripped[1], stripped[2].event_payload.len()), (&named, 0));

    let full = EventLog::new(stripped).unwrap().to_json();

    let again = parse_events(&full).unwrap();
    assert_eq!(again[0], event);
    assert_eq!(again[1], named);
}

#[test]
fn text_is_limited_in_bytes() {
    let text = format!("[{}]", " ".repeat(MAX_LOG_BYTES - 2));

    assert_eq!(parse_events(&text), Ok(Vec::new()));
    assert_eq!(parse_events(&format!("{text} ")), Err(EventLogError::TooLong { got: MAX_LOG_BYTES + 1, limit: MAX_LOG_BYTES }));
}

#[test]
fn log_is_limited_in_entries() {
    let text = |count: usize| format!("[{}]", vec![boot(0).to_string(); count].join(","));
    let entries = |count: usize| vec![Event::boot(0, 4, &BOOT_DIGEST, ""); count];

    assert_eq!(parse_events(&text(MAX_EVENTS)).unwrap().len(), MAX_EVENTS);
    assert_eq!(parse_events(&text(MAX_EVENTS + 2)).unwrap_err(), EventLogError::TooManyEvents { got: MAX_EVENTS + 2 });
    assert!(EventLog::new(entries(MAX_EVENTS)).is_ok());
    assert_eq!(EventLog::new(entries(MAX_EVENTS + 1)).unwrap_err(), EventLogError::TooManyEvents { got: MAX_EVENTS + 1 });
}

#[test]
fn log_inside_a_document_has_the_same_limit() {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(deserialize_with = "dstack_event_log::deserialize_events")]
        log: Vec<Event>,
    }
    let parse = |count: usize| {
        let text = json!({"log": vec![boot(0); count]}).to_string();
        serde_json::from_str::<Document>(&text).map(|document| document.log.len())
    };

    assert_eq!(parse(MAX_EVENTS).unwrap(), MAX_EVENTS);
    assert!(parse(MAX_EVENTS + 1).unwrap_err().to_string().starts_with("event log of 16385 entries exceeds the limit of 16384"));
}

#[test]
fn broken_text_says_where_and_not_much_else() {
    let error = parse_events(&format!("[\n {{\"imr\": \"{}\"}}]", "x".repeat(5_000))).unwrap_err();

    let EventLogError::Json { line, problem, .. } = &error else { panic!("{error}") };
    assert_eq!((*line, problem.chars().count()), (2, 200));
    assert_eq!(
        parse_events("{}").unwrap_err().to_string(),
        "event log is not JSON of the expected form at line 1 column 0: invalid type: map, expected an array of events"
    );
    assert_eq!(
        parse_events("[] x").unwrap_err().to_string(),
        "event log is not JSON of the expected form at line 1 column 4: trailing characters"
    );
}

#[test]
fn boot_time_register_ends_with_boot_mr_done() {
    let event = |name: &str| RuntimeEvent::new(name, vec![1], EventVersion::V1).to_event();
    let elsewhere = Event { imr: 2, ..event(names::BOOT_MR_DONE) };
    let log = vec![event("app-id"), elsewhere, event(names::BOOT_MR_DONE), event("later"), event(names::BOOT_MR_DONE)];

    let value = EventLog::new(log.clone()).unwrap().boot_time_rtmr3();

    assert_eq!(value, replay(&log[..3]).unwrap().get(3).copied());
    assert_eq!(EventLog::new(log[..2].to_vec()).unwrap().boot_time_rtmr3(), None);
}

#[test]
fn runtime_events_are_those_of_type_and_register() {
    let event = runtime(EventVersion::V1);
    let with_digest = Event { digest: BOOT_DIGEST.to_vec(), ..event.to_event() };
    let others = [Event { imr: 2, ..with_digest.clone() }, Event { event_type: 4, ..with_digest }];

    let log = EventLog::new([others.to_vec(), vec![event.to_event()]].concat()).unwrap();

    assert_eq!(log.runtime_events().collect::<Vec<_>>(), [event]);
    assert_eq!(log.boot_payload("app-id"), Some(vec![0xde, 0xad]));
}

#[test]
fn first_event_of_a_name_counts() {
    let event = |payload: u8| RuntimeEvent::new("app-id", vec![payload], EventVersion::V1).to_event();

    let log = EventLog::new(vec![event(1), event(2)]).unwrap();

    assert_eq!(log.boot_payload("app-id"), Some(vec![1]));
    assert_eq!(log.boot_payload("other"), None);
}

#[test]
fn mismatch_names_the_first_register_that_differs() {
    let log = EventLog::new(vec![Event::boot(1, 4, &BOOT_DIGEST, "")]).unwrap();
    let mut quoted = *log.registers();
    assert_eq!(log.check_registers(&quoted), Ok(()));
    quoted.0[2] = [9; 48];
    quoted.0[3] = [9; 48];

    let mismatch = log.check_registers(&quoted).unwrap_err();

    assert_eq!((mismatch.register, mismatch.replayed, mismatch.quoted, mismatch.agrees_after), (2, [0; 48], [9; 48], None));
    let expected = format!("replay of RTMR2 gives {}, the quote has {}", "00".repeat(48), "09".repeat(48));
    assert_eq!(mismatch.to_string(), expected);
}

#[test]
fn mismatch_of_a_register_that_was_never_extended_says_so() {
    let log = EventLog::new(vec![Event::boot(1, 4, &BOOT_DIGEST, "")]).unwrap();

    let mismatch = log.check_registers(&Registers::ZERO).unwrap_err();

    assert_eq!((mismatch.register, mismatch.agrees_after), (1, Some(0)));
    assert!(mismatch.to_string().ends_with("(reached after 0 of its events; the rest was not measured)"));
}

#[test]
fn registers_print_as_hex() {
    assert_eq!(format!("{:?}", Registers::ZERO), format!("[\"{0}\", \"{0}\", \"{0}\", \"{0}\"]", "00".repeat(48)));
}
