//! A genuine report of an H100, and reports of a GPU of our own with one change each.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dstack_attestation::{
    Context, Endorsements, Fault, Link, PlatformVerifier as _, Refusal, TrustAnchors, Vendor,
    gpu::{GpuEvidence, GpuEvidenceError, NvidiaGpu, VerifiedReport},
};
use rcgen::{CertificateParams, CustomExtension};

use crate::pki::{NOW, Party, at, bit_flips, must_read, trusting};

fn hopper() -> GpuEvidence {
    GpuEvidence::from_pem(must_read("gpu/hopper-report.bin"), &must_read("gpu/hopper-chain.pem")).unwrap()
}

fn verify(evidence: &GpuEvidence) -> Result<VerifiedReport, Refusal> {
    at(NOW, &TrustAnchors::hardware(), |context| NvidiaGpu.verify_report(evidence, context))
}

fn fault_of(result: Result<VerifiedReport, Refusal>) -> (Link, Fault) {
    let refusal = result.unwrap_err();
    (refusal.link, refusal.fault)
}

#[test]
fn the_report_of_an_h100_is_genuine() {
    let verified = verify(&hopper()).unwrap();

    let platform = verified.platform();
    assert!(platform.anchor().is_built_in());
    assert_eq!(platform.registers().len(), 64);
    assert_eq!(platform.register("measurement2").map(|value| hex::encode(&value[..8])), Some("8048dfd18fe229bf".to_owned()));
    assert_eq!(hex::encode(platform.report_data()), "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb");
    assert_eq!(platform.fact("driver_version"), Some("550.90.07"));
    assert_eq!(platform.fact("vbios_version"), Some("96.00.9F.00.01"));
    assert_eq!(platform.fact("model"), Some("GH100 A01 GSP BROM"));
    assert_eq!(platform.fact("project"), Some("1010"));
    assert_eq!(platform.fact("ueid"), Some("53c22ba15e5d68088282da074ed9fb37aa585771"));
    assert_eq!(platform.fact("chip_sku"), Some("882"));
    assert_eq!(hex::encode(&verified.report().responder_nonce[..4]), "b4b8a06a");
    assert!(platform.passed().iter().any(|passed| passed.link == Link::AttestationKey));
}

#[test]
fn says_what_it_did_not_check() {
    let verified = verify(&hopper()).unwrap();

    let missed: Vec<Link> = verified.platform().not_checked().iter().map(|missed| missed.link).collect();

    assert_eq!(missed, [Link::Endorsements, Link::Revocation]);
}

#[test]
fn rejects_genuine_reports_under_another_root_or_without_a_chain() {
    let stranger = Party::root("NVIDIA Device Identity CA");
    let anchors = trusting(Vendor::Nvidia, &stranger.der);
    let mut alone = hopper();
    let rest = alone.certificates.split_off(1);

    let refusal = at(NOW, &anchors, |context| NvidiaGpu.verify(&hopper(), context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::OtherRoot));
    assert_eq!(fault_of(verify(&alone)), (Link::CertificateChain, Fault::Missing));
    let endorsements = Endorsements { certificates: rest, ..Endorsements::default() };
    let hardware = TrustAnchors::hardware();
    let context = Context { anchors: &hardware, endorsements: &endorsements, now: NOW };
    assert!(NvidiaGpu.verify(&alone, &context).is_ok(), "the caller may give the chain");
    alone.certificates.clear();
    assert_eq!(fault_of(verify(&alone)), (Link::CertificateChain, Fault::Missing));
}

#[test]
fn rejects_reports_from_before_their_key() {
    let refusal = at(1_500_000_000, &TrustAnchors::hardware(), |context| NvidiaGpu.verify(&hopper(), context)).unwrap_err();

    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::NotYetValid));
}

#[test]
fn no_truncation_and_no_flipped_bit_goes_unnoticed() {
    let genuine = hopper();
    let with = |report: Vec<u8>| verify(&GpuEvidence { report, ..genuine.clone() });

    for length in (0..genuine.report.len()).step_by(3) {
        assert_eq!(fault_of(with(genuine.report[..length].to_vec())), (Link::Format, Fault::Malformed), "{length} bytes");
    }
    assert_eq!(fault_of(with([genuine.report.as_slice(), &[0]].concat())), (Link::Format, Fault::Malformed));
    let is_too_long = |length: usize| with(vec![0; length]).unwrap_err().detail.contains("exceeds the limit");
    assert_eq!([65_536, 65_537, 65_538, 10 << 20].map(is_too_long), [false, true, true, true]);
    for (position, report) in bit_flips(&genuine.report, 163) {
        assert!(with(report).is_err(), "byte {position}");
    }
}

/// The parts of a report.
#[derive(Clone)]
struct Parts {
    request: Vec<u8>,
    head: Vec<u8>,
    count: u8,
    measurements: Vec<u8>,
    opaque: Vec<u8>,
}

fn measurement(index: u8, specification: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u8;
    [&[index, specification, length + 3, 0, 1, length, 0], value].concat()
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, 0, value.len() as u8, 0], value].concat()
}

const FIRMWARE: [u8; 48] = [0x5f; 48];

impl Parts {
    fn new() -> Self {
        Self {
            request: [&[0x11, 0xe0, 1, 0xff], [7; 32].as_slice(), &[0]].concat(),
            head: vec![0x11, 0x60, 0, 0],
            count: 2,
            measurements: [measurement(1, 1, &[1; 48]), measurement(2, 1, &[2; 48])].concat(),
            opaque: [field(3, b"1.2\0"), field(20, &FIRMWARE)].concat(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.measurements.len()).unwrap().to_le_bytes();
        let opaque = u16::try_from(self.opaque.len()).unwrap().to_le_bytes();
        [&self.request, self.head.as_slice(), &[self.count], &length[..3], &self.measurements, &[8; 32], &opaque, &self.opaque].concat()
    }
}

/// The OID of sha384 and the head of its digest, as in a device id.
fn device_id(digest: &[u8]) -> CustomExtension {
    let head = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x04, 0x30];
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], [&[0x30, 61], head.as_slice(), digest].concat())
}

struct Gpu {
    root: Party,
    key: Party,
}

impl Gpu {
    fn new() -> Self {
        Self::with(|params| params.custom_extensions.push(device_id(&FIRMWARE)))
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let root = Party::root("maker");
        Self { key: root.leaf("gpu", change), root }
    }

    fn evidence(&self, parts: &Parts) -> GpuEvidence {
        let signed = parts.bytes();
        let signature = self.key.sign(&signed);
        GpuEvidence { report: [signed, signature].concat(), certificates: vec![self.key.der.clone()] }
    }

    fn verify(&self, evidence: &GpuEvidence) -> Result<VerifiedReport, Refusal> {
        at(NOW, &trusting(Vendor::Nvidia, &self.root.der), |context| NvidiaGpu.verify_report(evidence, context))
    }
}

#[test]
fn reads_every_part_of_a_report() {
    let gpu = Gpu::new();

    let verified = gpu.verify(&gpu.evidence(&Parts::new())).unwrap();

    assert_eq!(verified.platform().report_data(), [7; 32]);
    assert_eq!(verified.report().responder_nonce, [8; 32]);
    assert_eq!(verified.report().measurements[1].value, [2; 48]);
    assert_eq!((verified.report().measurements[1].index, verified.report().measurements[1].kind), (2, 1));
    assert_eq!(verified.platform().fact("driver_version"), Some("1.2"));
    assert_eq!(verified.platform().valid_until(), Some(1_798_761_600));
}

#[test]
fn rejects_reports_of_other_forms() {
    let gpu = Gpu::new();
    let changes: [fn(&mut Parts); 16] = [
        |parts| parts.request[0] = 0x12,
        |parts| parts.request[1] = 0xe1,
        |parts| parts.request[2] = 0,
        |parts| parts.request[3] = 1,
        |parts| parts.head[0] = 0x12,
        |parts| parts.head[1] = 0x7f,
        |parts| parts.count = 1,
        |parts| parts.count = 3,
        |parts| parts.measurements = [measurement(1, 1, &[1; 48]), measurement(1, 1, &[2; 48])].concat(),
        |parts| parts.measurements = [measurement(2, 1, &[1; 48]), measurement(1, 1, &[2; 48])].concat(),
        |parts| parts.measurements[1] = 2,
        |parts| parts.measurements[2] += 1,
        |parts| parts.measurements[5] -= 1,
        |parts| parts.opaque.push(0),
        |parts| parts.opaque[2] += 1,
        |parts| parts.opaque = [field(3, b"a"), field(3, b"b")].concat(),
    ];

    for (number, change) in changes.into_iter().enumerate() {
        let mut parts = Parts::new();
        change(&mut parts);
        assert_eq!(fault_of(gpu.verify(&gpu.evidence(&parts))), (Link::Format, Fault::Malformed), "change {number}");
    }
}

#[test]
fn rejects_reports_signed_by_another_key() {
    let (gpu, other) = (Gpu::new(), Gpu::new());
    let mut evidence = other.evidence(&Parts::new());
    evidence.certificates = vec![gpu.key.der.clone()];

    assert_eq!(fault_of(gpu.verify(&evidence)), (Link::Signature, Fault::Invalid));
}

#[test]
fn rejects_keys_of_other_firmware() {
    let gpu = Gpu::new();
    let mut parts = Parts::new();
    parts.opaque = field(20, &[0x5e; 48]);

    assert_eq!(fault_of(gpu.verify(&gpu.evidence(&parts))), (Link::AttestationKey, Fault::Invalid));
    parts.opaque = field(20, &FIRMWARE[..47]);
    assert_eq!(fault_of(gpu.verify(&gpu.evidence(&parts))), (Link::AttestationKey, Fault::Invalid));
    let garbled = Gpu::with(|params| params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], vec![5, 0])));
    assert_eq!(fault_of(garbled.verify(&garbled.evidence(&Parts::new()))), (Link::AttestationKey, Fault::Invalid));
}

#[test]
fn says_when_certificate_or_report_names_no_firmware() {
    let unnamed = Gpu::with(|_| ());
    let named = Gpu::new();
    let mut parts = Parts::new();
    parts.opaque.clear();

    for verified in [unnamed.verify(&unnamed.evidence(&Parts::new())), named.verify(&named.evidence(&parts))] {
        let platform = verified.unwrap();
        assert!(platform.platform().not_checked().iter().any(|missed| missed.link == Link::AttestationKey));
        assert!(platform.platform().passed().iter().all(|passed| passed.link != Link::AttestationKey));
    }
}

/// Blackwell's device id has the firmware's digest first and a second one of zeros behind it.
#[test]
fn the_device_id_of_blackwell_names_its_firmware() {
    let pem = must_read("gpu/blackwell-leaf.pem");
    let evidence = GpuEvidence::from_pem(Vec::new(), &pem).unwrap();
    let needle = hex::decode("9b92cc3e53b9265259e1abde163653288c2474fcafd8e5c0fd62ce9c9036fb62723fe3715b50f4ac27c68b62e2fd9240").unwrap();
    let der = &evidence.certificates[0];
    let at = der.windows(48).position(|window| window == needle).unwrap();
    // The extension as it stands in the certificate, from its first digest on.
    let content = der[at - 13..at + 48 + 15].to_vec();
    let gpu = Gpu::with(move |params| params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], content)));
    let mut parts = Parts::new();
    parts.opaque = field(20, &needle);

    assert!(gpu.verify(&gpu.evidence(&parts)).is_ok());
    parts.opaque = field(20, &[0; 48]);
    assert_eq!(fault_of(gpu.verify(&gpu.evidence(&parts))), (Link::AttestationKey, Fault::Invalid));
}

#[test]
fn reads_the_form_of_nvidias_service() {
    let (report, pem) = (must_read("gpu/hopper-report.bin"), must_read("gpu/hopper-chain.pem"));
    let gpu = format!(r#"{{"arch":"HOPPER","certificate":"{}","evidence":"{}"}}"#, STANDARD.encode(pem), STANDARD.encode(report));
    let parse = |gpus: &str| GpuEvidence::parse_json(&format!(r#"{{"nonce":"00","arch":"HOPPER","evidence_list":[{gpus}]}}"#));

    assert_eq!(parse(&gpu), Ok(vec![hopper()]));
    assert_eq!(parse(&[gpu.as_str(); 64].join(",")).map(|list| list.len()), Ok(64));
    assert!(matches!(parse(&[gpu.as_str(); 65].join(",")), Err(GpuEvidenceError::Json { .. })));
    assert!(matches!(parse(""), Err(GpuEvidenceError::Json { .. })));
    assert!(matches!(parse(r#"{"certificate":"","evidence":"?"}"#), Err(GpuEvidenceError::Field { field: "evidence", index: 0, .. })));
    assert!(matches!(parse(r#"{"certificate":"?","evidence":""}"#), Err(GpuEvidenceError::Field { field: "certificate", .. })));
    assert!(matches!(GpuEvidence::parse_json(&" ".repeat((4 << 20) + 1)), Err(GpuEvidenceError::TooLong { .. })));
}

/// Answers of NVIDIA's own verifier are tokens without a signature, not evidence.
#[test]
fn answers_of_nvidias_verifier_are_no_evidence() {
    let answer = r#"{"claims":[{"measres":"success"}],"detached_eat":[],"result_code":0}"#;

    assert!(matches!(GpuEvidence::parse_json(answer), Err(GpuEvidenceError::Json { .. })));
}
