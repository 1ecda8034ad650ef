//! Envelopes whose lists are longer than any that is meant.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{Envelope, EnvelopeError};
use dstack_event_log::MAX_EVENTS;
use serde_json::{Value, json};

/// A number as SCALE writes lengths: below 2^6, or from 2^14 to 2^30.
fn compact(number: usize) -> Vec<u8> {
    match u8::try_from(number) {
        Ok(small @ 0..64) => vec![small << 2],
        _ => ((u32::try_from(number).unwrap() << 2) | 2).to_le_bytes().to_vec(),
    }
}

/// Version 0 of TDX: no quote, so many of the shortest events, so many of the shortest runtime events, nothing else.
fn scale(events: usize, runtime_events: usize) -> Vec<u8> {
    let lists = [compact(events).as_slice(), &vec![0; 11 * events], &compact(runtime_events), &vec![0; 2 * runtime_events]].concat();
    [[0, 0, 0].as_slice(), &lists, &[0; 64], &[0]].concat()
}

fn message_pack(events: usize, runtime_events: usize) -> Vec<u8> {
    let entries = |count: usize, entry: Value| json!(vec![entry; count]);
    let platform = json!({"kind": "tdx", "data": {"quote": [], "event_log": entries(events, json!([0, 0, [], "", []]))}});
    let stack = json!({"report_data": vec![0; 64], "runtime_events": entries(runtime_events, json!(["", []])), "config": ""});
    rmp_serde::to_vec_named(&json!({"version": 1, "platform": platform, "stack": {"kind": "dstack", "data": stack}})).unwrap()
}

/// Version 0 of SEV-SNP: no report, so many empty certificates.
fn scale_certificates(count: u8) -> Vec<u8> {
    [[0, 3, 0, count << 2].as_slice(), &vec![0; count.into()], &[0], &[0], &[0; 64], &[0]].concat()
}

fn refused(bytes: &[u8]) -> bool {
    matches!(Envelope::decode(bytes), Err(EnvelopeError::Malformed { .. }))
}

#[test]
fn lists_of_events_are_bounded_before_they_are_kept() {
    for encode in [scale, message_pack] {
        assert!(Envelope::decode(&encode(MAX_EVENTS, MAX_EVENTS)).is_ok());
        assert!(refused(&encode(MAX_EVENTS + 1, 0)));
        assert!(refused(&encode(0, MAX_EVENTS + 1)));
    }
}

#[test]
fn certificates_are_bounded() {
    assert!(Envelope::decode(&scale_certificates(16)).is_ok());
    assert!(refused(&scale_certificates(17)));
}
