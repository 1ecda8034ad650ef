//! Version 0 of the envelope.

use dstack_event_log::{Event, EventVersion, RuntimeEvent};
use scale::{Compact, Decode, DecodeAll as _, Encode, Input as _};

use crate::{Envelope, EnvelopeError, PlatformEvidence};

type ScaleEvent = (u32, u32, Vec<u8>, String, Vec<u8>);

const TDX: u8 = 0;
const GCP_TDX: u8 = 1;
const NITRO_ENCLAVE: u8 = 2;
const SEV_SNP: u8 = 3;
const NITRO_TPM: u8 = 4;

/// What follows the platform's part.
#[derive(Decode)]
struct Stack {
    runtime_events: Vec<(String, Vec<u8>)>,
    report_data: [u8; 64],
    config: String,
}

#[allow(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn malformed(error: scale::Error) -> EnvelopeError {
    EnvelopeError::Malformed { version: 0, reason: error.to_string().split_whitespace().collect::<Vec<_>>().join(" ") }
}

fn take<T: Decode>(input: &mut &[u8]) -> Result<T, EnvelopeError> {
    T::decode(input).map_err(malformed)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
    let mut input = bytes;
    let evidence = match input.read_byte().map_err(malformed)? {
        TDX => {
            let (quote, event_log) = take::<(Vec<u8>, Vec<ScaleEvent>)>(&mut input)?;
            PlatformEvidence::Tdx { quote, event_log: event_log.into_iter().map(from_scale).collect() }
        }
        NITRO_ENCLAVE => PlatformEvidence::NitroEnclave { document: take(&mut input)? },
        SEV_SNP => {
            let (report, certificates, mr_config) = take(&mut input)?;
            PlatformEvidence::SevSnp { report, certificates, mr_config }
        }
        NITRO_TPM => PlatformEvidence::NitroTpm { document: take(&mut input)? },
        GCP_TDX => return Err(EnvelopeError::NotImplemented { platform: "gcp-tdx".to_owned() }),
        other => return Err(EnvelopeError::NotImplemented { platform: format!("number {other}") }),
    };
    let Stack { runtime_events, report_data, config } = Stack::decode_all(&mut input).map_err(malformed)?;
    let runtime_events = runtime_events.into_iter().map(|(event, payload)| RuntimeEvent::new(event, payload, EventVersion::V1)).collect();
    Ok(Envelope { evidence, runtime_events, report_data, config, report_data_payload: None })
}

fn from_scale((imr, event_type, digest, event, event_payload): ScaleEvent) -> Event {
    Event { imr, event_type, digest, event, event_payload, version: EventVersion::V1 }
}

pub(crate) fn encode(envelope: &Envelope) -> Result<Vec<u8>, EnvelopeError> {
    if envelope.report_data_payload.is_some() {
        return Err(EnvelopeError::NoVersion0Form { what: "a payload" });
    }
    let mut bytes = vec![0];
    match &envelope.evidence {
        PlatformEvidence::Tdx { quote, event_log } => {
            if event_log.iter().any(|event| event.version != EventVersion::V1) {
                return Err(EnvelopeError::NoVersion0Form { what: "version 2 runtime events" });
            }
            (TDX, quote).encode_to(&mut bytes);
            count(event_log.len()).encode_to(&mut bytes);
            for event in event_log {
                (event.imr, event.event_type, &event.digest, &event.event, &event.event_payload).encode_to(&mut bytes);
            }
        }
        PlatformEvidence::NitroEnclave { document } => (NITRO_ENCLAVE, document).encode_to(&mut bytes),
        PlatformEvidence::SevSnp { report, certificates, mr_config } => {
            (SEV_SNP, report, certificates, mr_config).encode_to(&mut bytes);
        }
        PlatformEvidence::NitroTpm { document } => (NITRO_TPM, document).encode_to(&mut bytes),
    }
    if envelope.runtime_events.iter().any(|event| event.version != EventVersion::V1) {
        return Err(EnvelopeError::NoVersion0Form { what: "version 2 runtime events" });
    }
    count(envelope.runtime_events.len()).encode_to(&mut bytes);
    for event in &envelope.runtime_events {
        (&event.event, &event.payload).encode_to(&mut bytes);
    }
    (envelope.report_data, &envelope.config).encode_to(&mut bytes);
    Ok(bytes)
}

fn count(length: usize) -> Compact<u32> {
    Compact(u32::try_from(length).unwrap_or(u32::MAX))
}
