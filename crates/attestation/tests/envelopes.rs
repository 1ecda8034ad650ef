//! Envelopes and JSON forms of running guests, and the identity they give.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Attestation, ContentType, Envelope, EnvelopeError, Evidence, EvidenceError, PlatformEvidence, UnverifiedQuote, bound_measurement,
    mr_aggregated, mr_system, report_data, tpm::TpmQuote,
};
use dstack_event_log::{Event, EventLog, EventVersion, RuntimeEvent};
use dstack_manifest::VmConfig;
use proptest::prelude::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/envelopes/");

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{DATA}{name}")).unwrap()
}

fn must_attestation() -> Attestation {
    Attestation::decode(&must_read("guest-agent-attestation.bin")).unwrap()
}

fn must_evidence(name: &str) -> Evidence {
    Evidence::parse_json(&String::from_utf8(must_read(name)).unwrap()).unwrap()
}

#[test]
fn version_0_of_a_running_guest_is_read_and_written_byte_for_byte() {
    let bytes = must_read("guest-agent-attestation.bin");

    let attestation = Attestation::decode(&bytes).unwrap();

    assert_eq!(attestation.encode_v0().unwrap(), bytes);
    let quote = UnverifiedQuote::parse(&attestation.quote).unwrap();
    assert_eq!(quote.fields().report_data, attestation.report_data);
    assert!(attestation.vm_config().contains("\"image\":\"dstack-0.6.0\""));
    let evidence = Evidence::from(attestation);
    assert_eq!(EventLog::new(evidence.event_log).unwrap().registers().get(3), quote.fields().rtmr.get(3));
}

#[test]
fn version_1_keeps_everything() {
    let mut attestation = must_attestation();
    attestation.runtime_events.push(RuntimeEvent::new("late", b"x".to_vec(), EventVersion::V2));
    attestation.event_log.push(RuntimeEvent::new("late", b"x".to_vec(), EventVersion::V2).to_event());

    assert_eq!(Attestation::decode(&attestation.encode()).unwrap(), attestation);
    assert_eq!(attestation.encode_v0().unwrap_err(), EnvelopeError::NoVersion0Form { what: "version 2 runtime events" });
}

fn must_snp() -> Envelope {
    Envelope::decode(&must_read("sev-snp-attestation.bin")).unwrap()
}

fn with_evidence(evidence: PlatformEvidence) -> Envelope {
    Envelope { evidence, ..must_snp() }
}

#[test]
fn every_platform_is_read_and_written_in_both_versions() {
    let tdx = Envelope::from(must_attestation());
    let enclave = with_evidence(PlatformEvidence::NitroEnclave { document: vec![0x84; 300] });
    let tpm = with_evidence(PlatformEvidence::NitroTpm { document: vec![7; 70_000] });
    for envelope in [tdx, must_snp(), enclave, tpm] {
        let v0 = envelope.encode_v0().unwrap();
        assert_eq!(Envelope::decode(&v0).unwrap(), envelope, "version 0");
        assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope, "version 1");
        assert!(Envelope::decode(&[v0, vec![0]].concat()).is_err(), "version 0 with a byte too many");
    }
}

#[test]
fn snp_envelope_of_a_running_guest_is_read_and_written_byte_for_byte() {
    let bytes = must_read("sev-snp-attestation.bin");

    let envelope = Envelope::decode(&bytes).unwrap();

    assert_eq!(envelope.encode_v0().unwrap(), bytes);
    let PlatformEvidence::SevSnp { report, mr_config, .. } = &envelope.evidence else { panic!("{}", envelope.evidence.kind()) };
    assert_eq!((report.len(), mr_config.contains("compose_hash")), (1184, true));
    assert_eq!(report[0x50..0x90], envelope.report_data);
}

#[test]
fn tdx_and_tpm_quote_of_googles_cloud_are_read_in_the_form_of_2025_and_written_in_the_current_one() {
    let old = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/tpm/gcp-attestation-1.bin")).unwrap();

    let envelope = Envelope::decode(&old).unwrap();

    let PlatformEvidence::GcpTdx { quote, event_log, tpm_quote } = &envelope.evidence else { panic!("{}", envelope.evidence.kind()) };
    assert_eq!((quote.len(), event_log.len(), envelope.runtime_events.len()), (8000, 44, 9));
    assert!(TpmQuote::decode_scale(&mut tpm_quote.as_slice()).is_ok());
    assert!(UnverifiedQuote::parse(quote).is_ok(), "zero padding is part of the quote");
    let current = envelope.encode_v0().unwrap();
    assert_eq!(current.len(), old.len() - 2);
    assert_eq!(Envelope::decode(&current).unwrap(), envelope);
    assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
    assert!(Attestation::decode(&old).unwrap_err().to_string().contains("gcp-tdx"));
    let PlatformEvidence::GcpTdx { event_log, .. } = envelope.stripped().evidence else { panic!("another platform") };
    assert!(event_log.len() == 9 && event_log.iter().all(|event| event.imr == 3 && event.digest.is_empty()));
    for length in (0..old.len()).step_by(61) {
        assert!(
            Envelope::decode(&old[..length]).is_err() && Envelope::decode(&current[..length.min(current.len() - 1)]).is_err(),
            "{length}"
        );
    }
}

#[test]
fn payload_of_a_pod_must_be_what_the_report_data_stands_for() {
    let pod = Envelope {
        report_data: report_data(ContentType::AppData, b"hello"),
        report_data_payload: Some("hello".to_owned()),
        ..Envelope::from(must_attestation())
    };

    assert_eq!(Envelope::decode(&pod.encode()).unwrap(), pod);
    assert_eq!(pod.encode_v0(), Err(EnvelopeError::NoVersion0Form { what: "a payload" }));
    let lying = Envelope { report_data_payload: Some("hallo".to_owned()), ..pod };
    assert_eq!(Envelope::decode(&lying.encode()), Err(EnvelopeError::Payload));
}

/// A MessagePack document of the given kinds, with nothing inside.
fn document(version: u8, platform: &str, stack: &str, pod: bool) -> Vec<u8> {
    let mut stack_data = serde_json::json!({ "report_data": "00".repeat(64), "runtime_events": [], "config": "" });
    if pod {
        stack_data["report_data_payload"] = "x".into();
    }
    let data = serde_json::json!({ "quote": "00", "event_log": [] });
    let document = serde_json::json!({
        "version": version,
        "platform": { "kind": platform, "data": data },
        "stack": { "kind": stack, "data": stack_data },
    });
    rmp_serde::to_vec_named(&document).unwrap()
}

#[test]
fn kinds_nobody_knows_are_named_in_the_refusal() {
    let refused = |version, platform, stack, pod| Envelope::decode(&document(version, platform, stack, pod)).unwrap_err().to_string();

    assert!(Envelope::decode(&document(1, "tdx", "dstack", false)).is_ok());
    assert!(refused(2, "tdx", "dstack", false).contains("version field 2"));
    assert!(refused(1, "riscv", "dstack", false).contains("riscv"));
    assert!(refused(1, "tdx", "other", false).contains("other"));
    assert!(refused(1, "tdx", "dstack", true).contains("payload"));
    assert!(refused(1, "tdx", "dstack-pod", false).contains("payload"));
    assert!(refused(1, "sev-snp", "dstack", false).contains("report"));
    assert_eq!(Envelope::decode(&[0, 9]), Err(EnvelopeError::NotImplemented { platform: "number 9".to_owned() }));
}

#[test]
fn stripped_form_keeps_the_runtime_events_and_what_no_image_determines() {
    let mut attestation = must_attestation();
    let kept = attestation.event_log.iter().filter(|event| event.imr == 3 || event.event_payload == b"ACPI DATA").count();
    let tables = Event { event_payload: b"ACPI DATA".to_vec(), ..Event::boot(0, 10, &[5; 48], "") };
    attestation.event_log.splice(0..0, [tables.clone(), Event::boot(0, 4, &[6; 48], ""), Event::boot(1, 4, &[7; 48], "")]);

    let stripped = attestation.stripped();

    assert_eq!((stripped.event_log.len(), &stripped.event_log[0]), (1 + kept, &tables));
    assert!(stripped.event_log.iter().all(|event| event.digest.is_empty() == (event.imr == 3)));
    let replayed = |attestation: &Attestation| *EventLog::new(attestation.event_log.clone()).unwrap().registers().get(3).unwrap();
    assert_eq!(replayed(&stripped), replayed(&attestation));
    assert_eq!(Attestation { event_log: attestation.event_log.clone(), ..stripped.clone() }, attestation);
    assert_eq!(Envelope::from(attestation).stripped(), Envelope::from(stripped));
}

#[test]
fn configuration_of_an_snp_guest_may_be_the_vm_config_itself() {
    let vm_config = |envelope: Envelope, config: &str| Envelope { config: config.to_owned(), ..envelope }.vm_config();
    let (nested, bare) = (r#"{"vm_config":"inner"}"#, r#"{"cpu_count":1}"#);

    assert_eq!([nested, bare].map(|config| vm_config(must_snp(), config)), ["inner", bare]);
    assert_eq!([nested, bare].map(|config| vm_config(Envelope::from(must_attestation()), config)), ["inner", ""]);
}

#[test]
fn other_platforms_are_named_and_refused() {
    let error = Attestation::decode(&must_read("sev-snp-attestation.bin")).unwrap_err();

    assert_eq!(error, EnvelopeError::NotImplemented { platform: "sev-snp".to_owned() });
    assert!(error.to_string().contains("not implemented"));
}

#[test]
fn broken_envelopes_are_refused() {
    let good = must_attestation();
    let (v0, v1) = (good.encode_v0().unwrap(), good.encode());

    for bytes in [vec![], vec![7], vec![0], vec![0, 9], vec![0x81, 0xc0], [v0.clone(), vec![0]].concat(), [v1.clone(), vec![0]].concat()] {
        assert!(Attestation::decode(&bytes).is_err(), "{:?}", bytes.get(..4));
    }
    for cut in [1, 2, 100, v0.len() - 1] {
        assert!(Attestation::decode(&v0[..cut]).is_err(), "{cut}");
        assert!(Attestation::decode(&v1[..cut]).is_err(), "{cut}");
    }
}

fn hash_of(digest: [u8; 32]) -> String {
    let text = hex::encode(digest);
    format!("{}…{}", &text[..8], &text[60..])
}

/// Values computed independently from the same files.
#[test]
fn system_and_aggregated_digests_match_the_golden_values() {
    let golden = [
        ("tdx-lite-getquote.json", "118f754a…8f70", "c758fa62…d2ee", "f4e6117e…145e"),
        ("quote-report.json", "e1ae776a…bb75", "233c659f…bf38", "f9a9159f…937b"),
    ];
    for (name, system, aggregated, boot_aggregated) in golden {
        let evidence = must_evidence(name);
        let fields = UnverifiedQuote::parse(&evidence.quote).unwrap().fields().clone();
        let log = EventLog::new(evidence.event_log).unwrap();
        log.check_registers(&fields.rtmr).unwrap();

        let provider = log.boot_payload("key-provider");

        assert_eq!(hash_of(mr_system(&fields, provider.as_deref())), system, "{name}");
        assert_eq!(hash_of(mr_aggregated(&fields, fields.rtmr.get(3).unwrap())), aggregated, "{name}");
        assert_eq!(hash_of(mr_aggregated(&fields, &log.boot_time_rtmr3().unwrap())), boot_aggregated, "{name}");
    }
}

#[test]
fn image_hash_binds_the_measurement_document() {
    let config: VmConfig = serde_json::from_str(&must_evidence("tdx-lite-getquote.json").vm_config).unwrap();
    let (os_image_hash, _) = bound_measurement(&config).unwrap();
    assert_eq!(Some(os_image_hash), config.os_image_hash);

    let changed = |change: fn(&mut VmConfig)| {
        let mut config = config.clone();
        change(&mut config);
        bound_measurement(&config).map(|_| ()).unwrap_err().to_string()
    };
    assert!(changed(|config| config.os_image_hash = None).contains("names no OS image"));
    assert!(changed(|config| config.tdx_measurement = None).contains("no measurement document"));
    assert!(changed(|config| config.tdx_measurement.as_mut().unwrap().measurement[40] ^= 1).contains("not bound"));
    assert!(changed(|config| config.tdx_measurement.as_mut().unwrap().checksum_file[3] ^= 1).contains("not bound"));
    assert!(changed(|config| config.os_image_hash = Some(dstack_manifest::OsImageHash::new([1; 32]))).contains("not bound"));
}

#[test]
fn json_forms_are_read_and_broken_ones_refused() {
    let attestation = serde_json::json!({ "attestation": hex::encode(must_read("guest-agent-attestation.bin")) }).to_string();
    assert_eq!(Evidence::parse_json(&attestation).unwrap(), Evidence::from(must_attestation()));
    assert_eq!(must_evidence("quote-report.json").report_data.unwrap()[..2], [0x12, 0x34]);

    assert_eq!(Evidence::parse_json("{}").unwrap_err(), EvidenceError::Empty);
    for (text, field) in [
        (r#"{"quote":"zz"}"#, "quote"),
        (r#"{"quote":"00","event_log":"["}"#, "event_log"),
        (r#"{"quote":"00","event_log":[{"imr":1}]}"#, "event_log"),
    ] {
        assert_eq!(Evidence::parse_json(text).unwrap_err(), EvidenceError::Field { field }, "{text}");
    }
    let long = format!(r#"{{"quote":"00","report_data":"{}"}}"#, "00".repeat(65));
    assert_eq!(Evidence::parse_json(&long).unwrap_err(), EvidenceError::Field { field: "report_data" });
}

proptest! {
    #[test]
    fn no_bytes_make_an_envelope_panic(first in prop_oneof![Just(0_u8), Just(0x83_u8), Just(0xde_u8), any::<u8>()], rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _any_answer = Attestation::decode(&[vec![first], rest].concat());
    }

    #[test]
    fn no_change_makes_an_envelope_panic(changes in proptest::collection::vec((0_usize..9000, any::<u8>()), 1..8), v1 in any::<bool>()) {
        let good = must_attestation();
        let mut bytes = if v1 { good.encode() } else { good.encode_v0().unwrap() };
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let _any_answer = Attestation::decode(&bytes);
    }
}
