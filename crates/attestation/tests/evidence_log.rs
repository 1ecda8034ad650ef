//! The event log inside a JSON document of evidence.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{Evidence, EvidenceError};
use dstack_event_log::MAX_EVENTS;
use serde_json::{Value, json};

fn events(log: &Value) -> Result<usize, EvidenceError> {
    Evidence::parse_json(&json!({"quote": "00", "event_log": log}).to_string()).map(|evidence| evidence.event_log.len())
}

fn entries(count: usize) -> Value {
    json!(vec![json!({"imr": 0, "event_type": 4}); count])
}

#[test]
fn log_is_an_array_or_its_text() {
    assert_eq!(events(&entries(2)), Ok(2));
    assert_eq!(events(&json!(entries(2).to_string())), Ok(2));
}

#[test]
fn no_log_is_an_empty_one() {
    assert_eq!(events(&Value::Null), Ok(0));
    assert_eq!(events(&json!("")), Ok(0));
    assert_eq!(Evidence::parse_json(r#"{"quote":"00"}"#).unwrap().event_log, []);
}

#[test]
fn log_of_too_many_entries_is_refused_in_either_form() {
    let refused = Err(EvidenceError::Field { field: "event_log" });

    assert_eq!(events(&entries(MAX_EVENTS)), Ok(MAX_EVENTS));
    assert_eq!(events(&entries(MAX_EVENTS + 1)), refused);
    assert_eq!(events(&json!(entries(MAX_EVENTS + 1).to_string())), refused);
    assert_eq!(events(&json!([0, 0])), refused);
    assert_eq!(events(&json!(3)), refused);
}
