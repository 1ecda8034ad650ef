//! Version 0 of the envelope.

use dstack_event_log::{Event, EventVersion, RuntimeEvent};
use scale::{Compact, Decode, DecodeAll as _, Encode, Input};

use crate::{Attestation, EnvelopeError};

#[derive(Encode, Decode)]
struct ScaleEvent {
    imr: u32,
    event_type: u32,
    digest: Vec<u8>,
    event: String,
    event_payload: Vec<u8>,
}

#[derive(Encode, Decode)]
struct ScaleRuntimeEvent {
    event: String,
    payload: Vec<u8>,
}

#[derive(Encode, Decode)]
struct ScaleTdx {
    quote: Vec<u8>,
    event_log: Vec<ScaleEvent>,
    runtime_events: Vec<ScaleRuntimeEvent>,
    report_data: [u8; 64],
    config: String,
}

const TDX: u8 = 0;

fn platform_name(index: u8) -> String {
    match index {
        1 => "gcp-tdx".into(),
        2 => "nitro-enclave".into(),
        3 => "sev-snp".into(),
        4 => "aws-nitro-tpm".into(),
        other => format!("number {other}"),
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Attestation, EnvelopeError> {
    let malformed = |error: scale::Error| EnvelopeError::Malformed { version: 0, reason: error.to_string() };
    let mut input = bytes;
    match input.read_byte().map_err(malformed)? {
        TDX => {}
        other => return Err(EnvelopeError::NotImplemented { platform: platform_name(other) }),
    }
    let tdx = ScaleTdx::decode_all(&mut input).map_err(malformed)?;
    Ok(Attestation {
        quote: tdx.quote,
        event_log: tdx.event_log.into_iter().map(from_scale).collect(),
        runtime_events: tdx
            .runtime_events
            .into_iter()
            .map(|event| RuntimeEvent::new(event.event, event.payload, EventVersion::V1))
            .collect(),
        report_data: tdx.report_data,
        config: tdx.config,
    })
}

fn from_scale(event: ScaleEvent) -> Event {
    Event {
        imr: event.imr,
        event_type: event.event_type,
        digest: event.digest,
        event: event.event,
        event_payload: event.event_payload,
        version: EventVersion::V1,
    }
}

pub(crate) fn encode(attestation: &Attestation) -> Result<Vec<u8>, EnvelopeError> {
    let newer = attestation.runtime_events.iter().any(|event| event.version != EventVersion::V1)
        || attestation.event_log.iter().any(|event| event.version != EventVersion::V1);
    if newer {
        return Err(EnvelopeError::NoVersion0Form);
    }
    let mut bytes = vec![0, TDX];
    attestation.quote.encode_to(&mut bytes);
    Compact(u32::try_from(attestation.event_log.len()).unwrap_or(u32::MAX)).encode_to(&mut bytes);
    for event in &attestation.event_log {
        (event.imr, event.event_type, &event.digest, &event.event, &event.event_payload).encode_to(&mut bytes);
    }
    Compact(u32::try_from(attestation.runtime_events.len()).unwrap_or(u32::MAX)).encode_to(&mut bytes);
    for event in &attestation.runtime_events {
        (&event.event, &event.payload).encode_to(&mut bytes);
    }
    attestation.report_data.encode_to(&mut bytes);
    attestation.config.encode_to(&mut bytes);
    Ok(bytes)
}
