//! dstack VMs of clouds, whose TPM tells the boot: each part of their evidence fails by its own check.
//!
//! Keys of the cloud are made here, so that a test can change one register and sign the rest properly; such roots give SIMULATED. The TDX
//! quote beside Google's TPM is a genuine one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

use ciborium::Value;
use coset::{CborSerializable as _, CoseSign1Builder, HeaderBuilder, iana};
use dstack_attestation::{
    Envelope, PlatformEvidence, QuoteCollateral, TrustAnchors, Vendor,
    tpm::{GCP_FIRMWARE_PCR0, TpmQuote},
};
use dstack_event_log::{EventVersion, HashAlgorithm, PcrBank, RuntimeEvent};
use dstack_manifest::OsImageHash;
use dstack_verdict::{Kind, Mark, Question, Subject, Verdict, Word, judge};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    SigningKey as _, date_time_ymd,
};
use scale::Encode as _;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

/// 2026-07-15, when the collateral of Google's machine is valid.
const NOW: u64 = 1_784_073_600;
const REPORT_DATA: [u8; 64] = [7; 64];

fn file(name: &str) -> Vec<u8> {
    let path = format!("{}/../attestation/tests/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A root, and an attestation key under it.
struct Cloud {
    root: Vec<u8>,
    leaf: Vec<u8>,
    key: KeyPair,
}

impl Cloud {
    fn new(key: KeyPair) -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
            params
        };
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut root_params = params("cloud");
        root_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root_params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = root_params.self_signed(&root_key).unwrap().der().to_vec();
        let mut leaf_params = params("vm");
        leaf_params.is_ca = IsCa::ExplicitNoCa;
        leaf_params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = leaf_params.signed_by(&key, &Issuer::from_params(&root_params, &root_key)).unwrap().der().to_vec();
        Self { root, leaf, key }
    }

    fn question(&self, vendor: Vendor) -> Question {
        let anchors = TrustAnchors::hardware().replace(vendor, [self.root.clone()]).unwrap();
        Question { anchors, root_origin: "the test".to_owned(), ..Question::open(NOW) }
    }
}

/// A measurement document of that name, and the image it belongs to.
fn image(name: &str, fields: Vec<(Value, Value)>) -> (OsImageHash, Json) {
    let mut measurement = Vec::new();
    ciborium::into_writer(&Value::Map(fields), &mut measurement).unwrap();
    let checksum_file = format!("{}  {name}\n", hex::encode(Sha256::digest(&measurement))).into_bytes();
    let hash = OsImageHash::new(Sha256::digest(&checksum_file).into());
    (hash, serde_json::to_value(dstack_manifest::MeasurementDocument { checksum_file, measurement }).unwrap())
}

fn config(hash: OsImageHash, field: &str, document: &Json) -> String {
    let vm_config = json!({ "os_image_hash": hash.to_string(), field: document });
    json!({ "vm_config": vm_config.to_string() }).to_string()
}

fn judged(envelope: &Envelope, question: &Question) -> Verdict {
    judge(&Subject::recognise(&envelope.encode()).unwrap(), question, "test")
}

/// The failed checks, in order.
fn failed(verdict: &Verdict) -> Vec<&str> {
    verdict.checks.iter().filter(|line| line.outcome == Mark::Failed).map(|line| line.name.as_ref()).collect()
}

fn refused_by(name: &str, verdict: &Verdict) {
    assert_eq!((verdict.word, failed(verdict)), (Word::NotVerified, vec![name]), "{}", verdict.reason);
}

/// The published evidence of a machine of Google's cloud.
fn genuine() -> (Envelope, TpmQuote) {
    let envelope = Envelope::decode(&file("tpm/gcp-attestation-1.bin")).unwrap();
    let PlatformEvidence::GcpTdx { tpm_quote, .. } = &envelope.evidence else { panic!("not of Google's cloud") };
    let quote = TpmQuote::decode_scale(&mut tpm_quote.as_slice()).unwrap();
    (envelope, quote)
}

fn with_gcp_collateral(question: Question) -> Question {
    let text = String::from_utf8(file("tdx/collateral/00806f050000-tdx-platform-20260630-e19.json")).unwrap();
    Question { endorsements: QuoteCollateral::parse_json(&text).unwrap().into(), ..question }
}

/// The third event of PCR 2.
fn unified_kernel(quote: &TpmQuote) -> Vec<u8> {
    quote.events.iter().filter(|event| event.pcr == 2).nth(2).unwrap().digest.clone()
}

fn gcp_image(unified_kernel: Vec<u8>) -> (OsImageHash, Json) {
    image("measurement.gcp.cbor", vec![("version".into(), 1.into()), ("uki_auth".into(), unified_kernel.into())])
}

impl Cloud {
    fn google() -> Self {
        Self::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// A quote of this cloud's TPM over `qualifying` with these registers of the SHA-256 bank, ascending, and the genuine boot log of PCR 2.
    fn tpm_quote(&self, qualifying: &[u8], pcrs: &[(u32, Vec<u8>)], genuine: &TpmQuote) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let mut selection = [0_u8; 3];
        pcrs.iter().for_each(|(pcr, _)| *selection.get_mut(*pcr as usize / 8).unwrap() |= 1 << (pcr % 8));
        let values: Vec<u8> = pcrs.iter().flat_map(|(_, value)| value.clone()).collect();
        let mut message = [&0xff54_4347_u32.to_be_bytes()[..], &0x8018_u16.to_be_bytes(), &sized(&[0, 11, 1]), &sized(qualifying)].concat();
        message.extend([0; 16]);
        message.push(1);
        message.extend([0; 8]);
        message.extend([&1_u32.to_be_bytes()[..], &HashAlgorithm::Sha256.id().to_be_bytes(), &[3], &selection].concat());
        message.extend(sized(&Sha256::digest(values)));
        let signature = p256::ecdsa::Signature::from_der(&self.key.sign(&message).unwrap()).unwrap().to_bytes();
        let (r, s) = signature.split_at(32);
        let signature = [&[0, 0x18, 0, 11, 0, 32], r, &[0, 32], s].concat();
        let values: Vec<(u32, String, Vec<u8>)> = pcrs.iter().map(|(pcr, value)| (*pcr, "sha256".to_owned(), value.clone())).collect();
        let events: Vec<(u32, Vec<u8>)> =
            genuine.events.iter().filter(|event| event.pcr == 2).map(|event| (2, event.digest.clone())).collect();
        (message, signature, values, self.leaf.clone(), 1_u8, events).encode()
    }
}

/// The genuine envelope with the quote of another TPM, whose registers are the genuine ones after `change`.
fn gcp_with(cloud: &Cloud, change: impl FnOnce(&mut Vec<(u32, Vec<u8>)>)) -> Verdict {
    let (mut envelope, genuine) = genuine();
    let (hash, document) = gcp_image(unified_kernel(&genuine));
    envelope.config = config(hash, "gcp_measurement", &document);
    let mut pcrs: Vec<(u32, Vec<u8>)> = genuine.pcrs.iter().map(|pcr| (pcr.pcr, pcr.value.clone())).collect();
    pcrs.sort();
    change(&mut pcrs);
    let PlatformEvidence::GcpTdx { quote, tpm_quote, .. } = &mut envelope.evidence else { panic!("not of Google's cloud") };
    *tpm_quote = cloud.tpm_quote(&Sha256::digest(quote), &pcrs, &genuine);
    judged(&envelope, &with_gcp_collateral(cloud.question(Vendor::Google)))
}

fn flip(pcrs: &mut [(u32, Vec<u8>)], number: u32) {
    let (_, value) = pcrs.iter_mut().find(|(pcr, _)| *pcr == number).unwrap();
    *value.first_mut().unwrap() ^= 1;
}

#[test]
fn another_firmware_than_googles_is_refused() {
    let cloud = Cloud::google();

    let honest = gcp_with(&cloud, |pcrs| assert!(pcrs.iter().any(|(pcr, value)| *pcr == 0 && value == &GCP_FIRMWARE_PCR0)));
    let other = gcp_with(&cloud, |pcrs| flip(pcrs, 0));

    assert_eq!((honest.word, failed(&honest)), (Word::Simulated, vec![]), "{}", honest.reason);
    assert!(honest.passed("tpm-firmware") && honest.passed("os-image") && honest.passed("tpm-runtime-log"));
    refused_by("tpm-firmware", &other);
}

#[test]
fn other_runtime_events_or_boot_events_than_the_tpm_has_are_refused() {
    let cloud = Cloud::google();

    refused_by("tpm-runtime-log", &gcp_with(&cloud, |pcrs| flip(pcrs, 14)));
    refused_by("tpm-event-log", &gcp_with(&cloud, |pcrs| flip(pcrs, 2)));
}

#[test]
fn a_unified_kernel_of_another_image_is_refused() {
    let (genuine_envelope, quote) = genuine();
    let judge_image = |unified_kernel: Vec<u8>, named: Option<OsImageHash>| {
        let (hash, document) = gcp_image(unified_kernel);
        let mut envelope = genuine_envelope.clone();
        envelope.config = config(named.unwrap_or(hash), "gcp_measurement", &document);
        (hash, judged(&envelope, &with_gcp_collateral(Question::open(NOW))))
    };
    let mut other = unified_kernel(&quote);
    *other.first_mut().unwrap() ^= 1;

    let (hash, booted) = judge_image(unified_kernel(&quote), None);
    assert!(booted.passed("os-image") && failed(&booted).is_empty(), "{}", booted.reason);
    assert_eq!(booted.identity.os_image_hash, Some(hash));
    refused_by("os-image", &judge_image(other, None).1);
    refused_by("os-image", &judge_image(unified_kernel(&quote), Some(OsImageHash::new([7; 32]))).1);
}

/// An instance of AWS with its papers. Tests change one part, then judge.
struct Instance {
    pcrs: Vec<(u8, [u8; 48])>,
    events: Vec<RuntimeEvent>,
    boot_pcr_digest: [u8; 32],
    claimed: [u8; 64],
}

impl Instance {
    fn new() -> Self {
        let event = |name: &str, payload: &[u8]| RuntimeEvent::new(name, payload, EventVersion::V1);
        let events = vec![
            event("app-id", &[1; 20]),
            event("compose-hash", &[2; 32]),
            event("instance-id", &[3; 20]),
            event("boot-mr-done", b""),
            event("key-provider", br#"{"name":"kms","id":"aabb"}"#),
        ];
        let pcrs = vec![(4, [4; 48]), (7, [7; 48]), (12, [12; 48]), (14, replay(&events))];
        let boot_pcr_digest = Sha256::digest([[4; 48], [7; 48], [12; 48]].concat()).into();
        Self { pcrs, events, boot_pcr_digest, claimed: REPORT_DATA }
    }

    fn verdict(self) -> Verdict {
        let cloud = Cloud::new(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        let pcrs = self.pcrs.iter().map(|(index, value)| (Value::from(*index), Value::from(value.to_vec()))).collect();
        let fields: Vec<(Value, Value)> = vec![
            ("module_id".into(), "i-0123456789abcdef0".into()),
            ("digest".into(), "SHA384".into()),
            ("timestamp".into(), (NOW * 1000).into()),
            ("nitrotpm_pcrs".into(), Value::Map(pcrs)),
            ("certificate".into(), cloud.leaf.clone().into()),
            ("cabundle".into(), Value::Array(vec![cloud.root.clone().into()])),
            ("public_key".into(), Value::Null),
            ("user_data".into(), REPORT_DATA.to_vec().into()),
            ("nonce".into(), Value::Null),
        ];
        let mut payload = Vec::new();
        ciborium::into_writer(&Value::Map(fields), &mut payload).unwrap();
        let sign = |message: &[u8]| p384::ecdsa::Signature::from_der(&cloud.key.sign(message).unwrap()).unwrap().to_bytes().to_vec();
        let header = HeaderBuilder::new().algorithm(iana::Algorithm::ES384).build();
        let document = CoseSign1Builder::new().protected(header).payload(payload).create_signature(&[], sign).build().to_vec().unwrap();
        let (hash, papers) = image("measurement.aws.cbor", vec![("boot_pcr_digest".into(), self.boot_pcr_digest.to_vec().into())]);
        let envelope = Envelope {
            evidence: PlatformEvidence::NitroTpm { document },
            runtime_events: self.events,
            report_data: self.claimed,
            config: config(hash, "aws_measurement", &papers),
            report_data_payload: None,
        };
        let mut subject = Subject::recognise(&envelope.encode()).unwrap();
        assert!(matches!(subject.kind, Kind::Nitro(_)));
        subject.saved = Default::default();
        judge(&subject, &cloud.question(Vendor::Aws), "test")
    }
}

fn replay(events: &[RuntimeEvent]) -> [u8; 48] {
    let mut bank = PcrBank::new(HashAlgorithm::Sha384);
    for event in events {
        bank.extend(14, event.digest_for(HashAlgorithm::Sha384).as_bytes()).unwrap();
    }
    bank.value(14).unwrap().as_bytes().try_into().unwrap()
}

/// The verdict after `change` of an honest instance.
fn instance(change: impl FnOnce(&mut Instance)) -> Verdict {
    let mut instance = Instance::new();
    change(&mut instance);
    instance.verdict()
}

#[test]
fn an_instance_with_nitro_tpm_is_judged_by_its_registers() {
    let verdict = instance(|_| ());

    assert_eq!((verdict.word, failed(&verdict)), (Word::Simulated, vec![]), "{}", verdict.reason);
    assert_eq!(verdict.platform, "aws-nitro-tpm");
    for name in ["signature", "claimed-report-data", "runtime-log", "identity", "os-image"] {
        assert!(verdict.passed(name), "{name}: {:?}", verdict.checks);
    }
    assert_eq!(verdict.identity.app_id.unwrap().as_bytes(), &[1; 20]);
}

#[test]
fn each_part_of_an_instance_is_refused_by_its_own_check() {
    for pcr in 0..3 {
        refused_by("os-image", &instance(|instance| instance.pcrs[pcr].1[0] ^= 1));
    }
    refused_by("runtime-log", &instance(|instance| instance.pcrs[3].1[0] ^= 1));
    refused_by("runtime-log", &instance(|instance| drop(instance.events.pop())));
    refused_by("os-image", &instance(|instance| instance.boot_pcr_digest[0] ^= 1));
    refused_by("claimed-report-data", &instance(|instance| instance.claimed[0] ^= 1));
    let malformed = instance(|instance| {
        instance.events[0].payload.pop();
        instance.pcrs[3].1 = replay(&instance.events);
    });
    refused_by("identity", &malformed);
}
