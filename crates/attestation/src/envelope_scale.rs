//! Version 0 of the envelope.

use dstack_event_log::{Event, EventVersion, MAX_EVENTS, RuntimeEvent};
use scale::{Compact, Decode, DecodeAll as _, Encode, Input as _};

use crate::{
    Envelope, EnvelopeError, PlatformEvidence,
    bounded::{Bounded, MAX_CERTIFICATES},
    tpm::TpmQuote,
};

type ScaleEvent = (u32, u32, Vec<u8>, String, Vec<u8>);

const TDX: u8 = 0;
const GCP_TDX: u8 = 1;
const NITRO_ENCLAVE: u8 = 2;
const SEV_SNP: u8 = 3;
const NITRO_TPM: u8 = 4;

/// What follows the platform's part.
#[derive(Decode)]
struct Stack {
    runtime_events: Bounded<(String, Vec<u8>), MAX_EVENTS>,
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
            let (quote, event_log) = take::<(Vec<u8>, Bounded<ScaleEvent, MAX_EVENTS>)>(&mut input)?;
            PlatformEvidence::Tdx { quote, event_log: event_log.0.into_iter().map(from_scale).collect() }
        }
        NITRO_ENCLAVE => PlatformEvidence::NitroEnclave { document: take(&mut input)? },
        SEV_SNP => {
            let (report, certificates, mr_config) = take::<(_, Bounded<_, MAX_CERTIFICATES>, _)>(&mut input)?;
            PlatformEvidence::SevSnp { report, certificates: certificates.0, mr_config }
        }
        NITRO_TPM => PlatformEvidence::NitroTpm { document: take(&mut input)? },
        GCP_TDX => gcp(&mut input)?,
        other => return Err(EnvelopeError::NotImplemented { platform: format!("number {other}") }),
    };
    let Stack { runtime_events, report_data, config } = Stack::decode_all(&mut input).map_err(malformed)?;
    let runtime_events = runtime_events.0.into_iter().map(|(event, payload)| RuntimeEvent::new(event, payload, EventVersion::V1)).collect();
    Ok(Envelope { evidence, runtime_events, report_data, config, report_data_payload: None })
}

/// Both quotes of a machine on Google's cloud. In 2025 each was optional.
fn gcp(input: &mut &[u8]) -> Result<PlatformEvidence, EnvelopeError> {
    let start = *input;
    gcp_parts(input, false).or_else(|error| {
        *input = start;
        gcp_parts(input, true).map_err(|_| error)
    })
}

fn gcp_parts(input: &mut &[u8], optional: bool) -> Result<PlatformEvidence, EnvelopeError> {
    let present = |input: &mut &[u8]| match optional {
        true if take::<u8>(input)? != 1 => Err(malformed("one of the two quotes is missing".into())),
        _ => Ok(()),
    };
    present(input)?;
    let (quote, event_log) = take::<(Vec<u8>, Bounded<ScaleEvent, MAX_EVENTS>)>(input)?;
    present(input)?;
    let before = *input;
    TpmQuote::decode_scale(input).map_err(|error| EnvelopeError::Malformed { version: 0, reason: error.to_string() })?;
    let length = before.len().saturating_sub(input.len());
    let tpm_quote = before.get(..length).unwrap_or_default().to_vec();
    Ok(PlatformEvidence::GcpTdx { quote, event_log: event_log.0.into_iter().map(from_scale).collect(), tpm_quote })
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
        PlatformEvidence::Tdx { quote, event_log } => encode_td(&mut bytes, TDX, quote, event_log)?,
        PlatformEvidence::GcpTdx { quote, event_log, tpm_quote } => {
            encode_td(&mut bytes, GCP_TDX, quote, event_log)?;
            bytes.extend_from_slice(tpm_quote);
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

fn encode_td(bytes: &mut Vec<u8>, number: u8, quote: &[u8], event_log: &[Event]) -> Result<(), EnvelopeError> {
    if event_log.iter().any(|event| event.version != EventVersion::V1) {
        return Err(EnvelopeError::NoVersion0Form { what: "version 2 runtime events" });
    }
    (number, quote).encode_to(bytes);
    count(event_log.len()).encode_to(bytes);
    for event in event_log {
        (event.imr, event.event_type, &event.digest, &event.event, &event.event_payload).encode_to(bytes);
    }
    Ok(())
}

fn count(length: usize) -> Compact<u32> {
    Compact(u32::try_from(length).unwrap_or(u32::MAX))
}
