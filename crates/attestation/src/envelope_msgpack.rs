//! Version 1 of the envelope.

use std::fmt;

use dstack_event_log::{Event, EventVersion, MAX_EVENTS, RuntimeEvent};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_bytes::Bytes;

use crate::{
    Envelope, EnvelopeError, PlatformEvidence,
    bounded::{Bounded, MAX_CERTIFICATES},
};

/// Binary that other writers may have put as `bin`, as numbers, or as text.
enum Binary {
    Raw(Vec<u8>),
    Text(String),
}

impl Default for Binary {
    fn default() -> Self {
        Self::Raw(Vec::new())
    }
}

impl Binary {
    fn bytes(self, from_text: fn(&str) -> Option<Vec<u8>>) -> Result<Vec<u8>, EnvelopeError> {
        match self {
            Self::Raw(bytes) => Ok(bytes),
            Self::Text(text) => from_text(&text).ok_or_else(|| malformed("a binary field is text of another form")),
        }
    }

    fn hex(self) -> Result<Vec<u8>, EnvelopeError> {
        self.bytes(|text| hex::decode(text).ok())
    }

    fn base64(self) -> Result<Vec<u8>, EnvelopeError> {
        self.bytes(|text| {
            serde_json::from_value::<RuntimeEvent>(serde_json::json!({"event": "", "payload": text})).ok().map(|event| event.payload)
        })
    }
}

impl<'de> Deserialize<'de> for Binary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Binary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("binary")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Binary, E> {
                Ok(Binary::Raw(bytes.to_vec()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Binary, E> {
                Ok(Binary::Text(text.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Binary, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Binary::Raw(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
struct Kinds {
    version: u32,
    platform: Kind,
    stack: Kind,
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

#[derive(Deserialize)]
struct Document<P> {
    platform: Section<P>,
    stack: Section<StackData>,
}

#[derive(Deserialize)]
struct Section<T> {
    data: T,
}

#[derive(Deserialize)]
struct TdxData {
    quote: Binary,
    #[serde(default)]
    event_log: Bounded<WireEvent, MAX_EVENTS>,
}

#[derive(Deserialize)]
struct GcpTdxData {
    quote: Binary,
    #[serde(default)]
    event_log: Bounded<WireEvent, MAX_EVENTS>,
    tpm_quote: Binary,
}

#[derive(Deserialize)]
struct NitroEnclaveData {
    nsm_quote: Binary,
}

#[derive(Deserialize)]
struct NitroTpmData {
    attestation_doc: Binary,
}

#[derive(Deserialize)]
struct SevSnpData {
    report: Binary,
    #[serde(default)]
    cert_chain: Bounded<Binary, MAX_CERTIFICATES>,
    #[serde(default)]
    mr_config: String,
}

#[derive(Deserialize)]
struct WireEvent {
    imr: u32,
    event_type: u32,
    #[serde(default)]
    digest: Binary,
    #[serde(default)]
    event: String,
    #[serde(default)]
    event_payload: Binary,
    #[serde(default)]
    version: Option<u32>,
}

#[derive(Deserialize)]
struct StackData {
    report_data: Binary,
    #[serde(default)]
    runtime_events: Bounded<WireRuntimeEvent, MAX_EVENTS>,
    #[serde(default)]
    config: String,
    #[serde(default)]
    report_data_payload: Option<String>,
}

#[derive(Deserialize)]
struct WireRuntimeEvent {
    event: String,
    payload: Binary,
    #[serde(default)]
    version: Option<u32>,
}

fn malformed(reason: impl fmt::Display) -> EnvelopeError {
    EnvelopeError::Malformed { version: 1, reason: reason.to_string() }
}

fn version(number: Option<u32>) -> Result<EventVersion, EnvelopeError> {
    match number {
        None | Some(1) => Ok(EventVersion::V1),
        Some(2) => Ok(EventVersion::V2),
        Some(other) => Err(malformed(format_args!("runtime event version {other}"))),
    }
}

/// Reads one value that must fill `bytes`.
fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, EnvelopeError> {
    let mut reader = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    reader.set_max_depth(32);
    let value = T::deserialize(&mut reader).map_err(malformed)?;
    let end = usize::try_from(reader.position()).unwrap_or(usize::MAX);
    if end == bytes.len() { Ok(value) } else { Err(malformed("bytes follow the document")) }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
    let kinds: Kinds = read(bytes)?;
    if kinds.version != 1 {
        return Err(malformed(format_args!("version field {}", kinds.version)));
    }
    let pod = match kinds.stack.kind.as_str() {
        "dstack" => false,
        "dstack-pod" => true,
        other => return Err(EnvelopeError::NotImplemented { platform: format!("{} with stack {other}", kinds.platform.kind) }),
    };
    let (evidence, stack) = match kinds.platform.kind.as_str() {
        "tdx" => {
            let Document::<TdxData> { platform, stack } = read(bytes)?;
            let event_log = platform.data.event_log.0.into_iter().map(event).collect::<Result<_, _>>()?;
            (PlatformEvidence::Tdx { quote: platform.data.quote.hex()?, event_log }, stack.data)
        }
        "gcp-tdx" => {
            let Document::<GcpTdxData> { platform, stack } = read(bytes)?;
            let GcpTdxData { quote, event_log, tpm_quote } = platform.data;
            let event_log = event_log.0.into_iter().map(event).collect::<Result<_, _>>()?;
            (PlatformEvidence::GcpTdx { quote: quote.hex()?, event_log, tpm_quote: tpm_quote.hex()? }, stack.data)
        }
        "nitro-enclave" => {
            let Document::<NitroEnclaveData> { platform, stack } = read(bytes)?;
            (PlatformEvidence::NitroEnclave { document: platform.data.nsm_quote.hex()? }, stack.data)
        }
        "aws-nitro-tpm" => {
            let Document::<NitroTpmData> { platform, stack } = read(bytes)?;
            (PlatformEvidence::NitroTpm { document: platform.data.attestation_doc.hex()? }, stack.data)
        }
        "sev-snp" => {
            let Document::<SevSnpData> { platform, stack } = read(bytes)?;
            let SevSnpData { report, cert_chain, mr_config } = platform.data;
            let certificates = cert_chain.0.into_iter().map(Binary::hex).collect::<Result<_, _>>()?;
            (PlatformEvidence::SevSnp { report: report.hex()?, certificates, mr_config }, stack.data)
        }
        _ => return Err(EnvelopeError::NotImplemented { platform: kinds.platform.kind }),
    };
    if pod != stack.report_data_payload.is_some() {
        return Err(malformed("a payload belongs to the stack dstack-pod, and only there"));
    }
    let runtime_events = stack.runtime_events.0.into_iter().map(runtime_event).collect::<Result<_, _>>()?;
    let report_data = stack.report_data.hex()?.try_into().map_err(|_| malformed("report_data is not 64 bytes"))?;
    Ok(Envelope { evidence, runtime_events, report_data, config: stack.config, report_data_payload: stack.report_data_payload })
}

fn event(wire: WireEvent) -> Result<Event, EnvelopeError> {
    Ok(Event {
        imr: wire.imr,
        event_type: wire.event_type,
        digest: wire.digest.hex()?,
        event: wire.event,
        event_payload: wire.event_payload.hex()?,
        version: version(wire.version)?,
    })
}

fn runtime_event(wire: WireRuntimeEvent) -> Result<RuntimeEvent, EnvelopeError> {
    Ok(RuntimeEvent::new(wire.event, wire.payload.base64()?, version(wire.version)?))
}

#[derive(Serialize)]
struct OutDocument<'a> {
    version: u32,
    platform: OutSection<OutPlatform<'a>>,
    stack: OutSection<OutStack<'a>>,
}

#[derive(Serialize)]
struct OutSection<T> {
    kind: &'static str,
    data: T,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutPlatform<'a> {
    Tdx { quote: &'a Bytes, event_log: Vec<OutEvent<'a>> },
    GcpTdx { quote: &'a Bytes, event_log: Vec<OutEvent<'a>>, tpm_quote: &'a Bytes },
    NitroEnclave { nsm_quote: &'a Bytes },
    SevSnp { report: &'a Bytes, cert_chain: Vec<&'a Bytes>, mr_config: &'a str },
    NitroTpm { attestation_doc: &'a Bytes },
}

#[derive(Serialize)]
struct OutEvent<'a> {
    imr: u32,
    event_type: u32,
    digest: &'a Bytes,
    event: &'a str,
    event_payload: &'a Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
}

#[derive(Serialize)]
struct OutStack<'a> {
    report_data: &'a Bytes,
    runtime_events: Vec<OutRuntimeEvent<'a>>,
    config: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    report_data_payload: Option<&'a str>,
}

#[derive(Serialize)]
struct OutRuntimeEvent<'a> {
    event: &'a str,
    payload: &'a Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
}

fn out_version(version: EventVersion) -> Option<u32> {
    (version != EventVersion::V1).then(|| version.number())
}

fn out_event(event: &Event) -> OutEvent<'_> {
    OutEvent {
        imr: event.imr,
        event_type: event.event_type,
        digest: Bytes::new(&event.digest),
        event: &event.event,
        event_payload: Bytes::new(&event.event_payload),
        version: out_version(event.version),
    }
}

fn out_platform(evidence: &PlatformEvidence) -> OutPlatform<'_> {
    match evidence {
        PlatformEvidence::Tdx { quote, event_log } => {
            OutPlatform::Tdx { quote: Bytes::new(quote), event_log: event_log.iter().map(out_event).collect() }
        }
        PlatformEvidence::GcpTdx { quote, event_log, tpm_quote } => OutPlatform::GcpTdx {
            quote: Bytes::new(quote),
            event_log: event_log.iter().map(out_event).collect(),
            tpm_quote: Bytes::new(tpm_quote),
        },
        PlatformEvidence::NitroEnclave { document } => OutPlatform::NitroEnclave { nsm_quote: Bytes::new(document) },
        PlatformEvidence::SevSnp { report, certificates, mr_config } => OutPlatform::SevSnp {
            report: Bytes::new(report),
            cert_chain: certificates.iter().map(|certificate| Bytes::new(certificate)).collect(),
            mr_config,
        },
        PlatformEvidence::NitroTpm { document } => OutPlatform::NitroTpm { attestation_doc: Bytes::new(document) },
    }
}

pub(crate) fn encode(envelope: &Envelope) -> Vec<u8> {
    let runtime_events = envelope.runtime_events.iter().map(|event| OutRuntimeEvent {
        event: &event.event,
        payload: Bytes::new(&event.payload),
        version: out_version(event.version),
    });
    let stack = OutStack {
        report_data: Bytes::new(&envelope.report_data),
        runtime_events: runtime_events.collect(),
        config: &envelope.config,
        report_data_payload: envelope.report_data_payload.as_deref(),
    };
    let document = OutDocument {
        version: 1,
        platform: OutSection { kind: envelope.evidence.kind(), data: out_platform(&envelope.evidence) },
        stack: OutSection { kind: if envelope.report_data_payload.is_some() { "dstack-pod" } else { "dstack" }, data: stack },
    };
    // Writing to memory cannot fail, and every type above has a MessagePack form.
    rmp_serde::to_vec_named(&document).unwrap_or_default()
}
