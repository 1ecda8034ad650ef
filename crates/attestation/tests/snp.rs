//! Genuine SEV-SNP reports with their keys' certificates, and single changes in them. The clock is pinned.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use dstack_attestation::{
    AnchorKind, Context, Endorsements, Envelope, Fault, Link, Platform, PlatformEvidence, PlatformVerifier, Refusal, TcbStatus,
    TrustAnchors, Vendor, VerifiedPlatform,
    sev_snp::{
        self, GuestFault, HostDataError, LaunchMismatch, ReportError, SevSnp, SigningKey, SnpFields, TcbVersion, UnverifiedReport,
        VerifiedReport,
    },
};
use dstack_manifest::{KeyProviderKind, OsImageHash, VmConfig};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");
/// Every how many bytes one is changed: the portable signatures take a tenth of a second each where they are not optimised.
const STEP: usize = if cfg!(feature = "aws-lc") { 3 } else { 41 };

#[derive(Debug, Clone, Deserialize)]
struct Case {
    id: String,
    report: String,
    #[serde(default)]
    vek: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    product: String,
    #[serde(default)]
    ask: String,
    #[serde(default)]
    ark: String,
    #[serde(default)]
    time: u64,
    #[serde(default)]
    verdict: String,
    #[serde(default)]
    debug: bool,
    #[serde(default)]
    fields: Value,
}

fn must_read(name: &str) -> Vec<u8> {
    let path = match name.strip_prefix("ca/") {
        Some(root) if root.starts_with("ark-") => format!("{CRATE}/roots/amd-{root}"),
        Some(intermediate) => format!("{CRATE}/intermediates/amd-{intermediate}"),
        None => format!("{CRATE}/tests/testdata/snp/{name}"),
    };
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn must_cases(file: &str) -> Vec<Case> {
    serde_json::from_slice(&must_read(file)).unwrap()
}

fn verifiable() -> Vec<Case> {
    must_cases("cases.json").into_iter().filter(|case| case.verdict == "accept").collect()
}

/// The report of a dstack VM.
fn dstack_vm() -> Case {
    verifiable().into_iter().find(|case| case.report.contains("a20e02a2e8198894")).unwrap()
}

fn vlek() -> Case {
    verifiable().into_iter().find(|case| case.kind == "VLEK").unwrap()
}

fn vlek_of_version_2() -> Case {
    verifiable().into_iter().find(|case| case.report.contains("affb92f91b8f52f9")).unwrap()
}

impl Case {
    fn chain(&self) -> Vec<Vec<u8>> {
        vec![must_read(&self.vek), must_read(&self.ask), must_read(&self.ark)]
    }

    fn verify(&self) -> Result<VerifiedReport, Refusal> {
        self.verify_with(&must_read(&self.report), self.chain(), self.time)
    }

    fn verify_with(&self, report: &[u8], certificates: Vec<Vec<u8>>, now: u64) -> Result<VerifiedReport, Refusal> {
        verify(report, certificates, now, &TrustAnchors::hardware())
    }

    fn must_field(&self, name: &str) -> Vec<u8> {
        hex::decode(self.fields[name].as_str().unwrap()).unwrap()
    }
}

fn verify(report: &[u8], certificates: Vec<Vec<u8>>, now: u64, anchors: &TrustAnchors) -> Result<VerifiedReport, Refusal> {
    let endorsements = Endorsements { certificates, ..Endorsements::default() };
    SevSnp.verify_report(report, &Context { anchors, endorsements: &endorsements, now })
}

fn assert_refused(result: Result<VerifiedReport, Refusal>, link: Link, fault: Fault, what: &str) -> String {
    let refusal = result.err().unwrap_or_else(|| panic!("{what}: accepted"));
    assert_eq!((refusal.platform, refusal.link, refusal.fault), (Platform::SevSnp, link, fault), "{what}: {refusal}");
    refusal.detail
}

fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")).into_bytes()
}

#[test]
fn genuine_reports_verify() {
    let cases = verifiable();
    assert_eq!(cases.len(), 15);
    for case in cases {
        let verified = case.verify().unwrap_or_else(|refusal| panic!("{}: {refusal}", case.id));

        assert_eq!(verified.product().name(), case.product, "{}", case.id);
        assert_eq!(verified.fields().signing_key.name(), case.kind, "{}", case.id);
        assert_eq!(verified.provider().is_some(), case.kind == "VLEK", "{}", case.id);
        let platform = verified.platform();
        assert_eq!(platform.debug(), Some(case.debug), "{}", case.id);
        assert_eq!(platform.hardware_id().is_none(), case.kind == "VLEK", "{}", case.id);
        assert!(
            matches!(platform.anchor(), AnchorKind::BuiltIn { vendor: Vendor::Amd, name } if name.ends_with(&case.product)),
            "{}",
            case.id
        );
        assert!(platform.valid_until().unwrap() > case.time, "{}", case.id);
        let tcbs: Vec<&Value> =
            ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"].iter().map(|name| &case.fields[*name]).collect();
        let settled = tcbs.iter().all(|tcb| *tcb == tcbs[0]);
        let status = if settled { TcbStatus::UpToDate } else { TcbStatus::OutOfDate };
        assert_eq!(platform.tcb_status(), Some(status), "{}", case.id);
    }
}

#[test]
fn both_states_of_the_tcb_occur() {
    let settled = verifiable().iter().filter(|case| case.verify().unwrap().fields().is_tcb_settled()).count();
    assert!((1..15).contains(&settled), "{settled}");
}

#[test]
fn fields_are_those_an_independent_program_reads() {
    for case in must_cases("cases.json") {
        let Value::Object(expected) = &case.fields else { continue };
        let report = UnverifiedReport::parse(&must_read(&case.report)).unwrap();
        let fields = report.fields();
        for (name, value) in expected {
            let got = match name.as_str() {
                "version" => json!(fields.version),
                "guest_svn" => json!(fields.guest_svn),
                "policy" => json!(format!("{:#x}", fields.policy.0)),
                "vmpl" => json!(fields.vmpl),
                "sig_algo" => json!(1),
                "platform_info" => json!(hex::encode(fields.platform_info.0.to_le_bytes())),
                "key_flags" => json!(hex::encode(key_flags(fields).to_le_bytes())),
                "cpuid_fam_mod_step" => fields.cpuid.map_or(Value::Null, |cpuid| json!(hex::encode(cpuid))),
                other => json!(hex::encode(bytes_of(fields, other))),
            };
            assert_eq!(&got, value, "{} {name}", case.id);
        }
        assert_eq!(fields.mitigations.is_some(), fields.version >= 5, "{}", case.id);
        assert!(!fields.is_newer_than_known(), "{}", case.id);
    }
}

fn key_flags(fields: &SnpFields) -> u32 {
    let key = if fields.signing_key == SigningKey::Vlek { 1 } else { 0 };
    u32::from(fields.author_key_enabled) | u32::from(fields.chip_key_masked) << 1 | key << 2
}

fn bytes_of<'a>(fields: &'a SnpFields, name: &str) -> &'a [u8] {
    match name {
        "family_id" => &fields.family_id,
        "image_id" => &fields.image_id,
        "current_tcb" => &fields.current_tcb.0,
        "reported_tcb" => &fields.reported_tcb.0,
        "committed_tcb" => &fields.committed_tcb.0,
        "launch_tcb" => &fields.launch_tcb.0,
        "report_data" => &fields.report_data,
        "measurement" => &fields.measurement,
        "host_data" => &fields.host_data,
        "id_key_digest" => &fields.id_key_digest,
        "author_key_digest" => &fields.author_key_digest,
        "report_id" => &fields.report_id,
        "report_id_ma" => &fields.report_id_ma,
        "chip_id" => &fields.chip_id,
        other => panic!("no field {other}"),
    }
}

#[test]
fn the_common_form_carries_registers_and_facts() {
    let case = dstack_vm();
    let verified = VerifiedPlatform::from(case.verify().unwrap());

    assert_eq!(verified.platform(), Platform::SevSnp);
    assert_eq!(verified.report_data(), case.must_field("report_data"));
    for register in ["measurement", "host_data", "id_key_digest", "author_key_digest"] {
        assert_eq!(verified.register(register).unwrap(), case.must_field(register), "{register}");
    }
    assert_eq!(verified.hardware_id().unwrap(), case.must_field("chip_id"));
    for (fact, value) in [
        ("product", "Milan"),
        ("report_version", "3"),
        ("signing_key", "vcek"),
        ("vmpl", "0"),
        ("guest_svn", "0"),
        ("policy", "0x30000"),
        ("policy_abi", "0.0"),
        ("policy_smt", "true"),
        ("policy_debug", "false"),
        ("policy_migration_agent", "false"),
        ("policy_single_socket", "false"),
        ("policy_ciphertext_hiding", "false"),
        ("policy_unknown_bits", "0x0"),
        ("platform_smt", "true"),
        ("platform_tsme", "false"),
        ("platform_ecc", "true"),
        ("platform_alias_check_complete", "true"),
        ("platform_ciphertext_hiding", "false"),
        ("current_tcb", "04000000000018d5"),
        ("reported_tcb_components", "boot loader 4, TEE 0, SNP 23, microcode 213"),
        ("firmware_version", "1.55.29"),
        ("committed_firmware_version", "1.55.29"),
        ("cpu", "family 0x19 model 0x1 stepping 0x1"),
    ] {
        assert_eq!(verified.fact(fact), Some(value), "{fact}");
    }
    assert_eq!((verified.fact("cloud_provider"), verified.fact("current_mitigations")), (None, None));
    let links: Vec<Link> = verified.passed().iter().map(|passed| passed.link).collect();
    assert_eq!(links, [Link::Format, Link::CertificateChain, Link::AttestationKey, Link::Signature, Link::Tcb]);
    assert_eq!(verified.not_checked()[0].link, Link::Revocation);
    assert_eq!(verified.valid_until(), Some(2_002_583_104), "2033-06-17, with the VCEK");
}

#[test]
fn facts_of_later_versions_and_of_cloud_keys_are_there() {
    let genoa = verifiable().into_iter().find(|case| case.report.contains("7ea4daeb952f4c85")).unwrap();
    let verified = VerifiedPlatform::from(genoa.verify().unwrap());
    assert_eq!(verified.fact("report_version"), Some("5"));
    assert_eq!((verified.fact("launch_mitigations"), verified.fact("current_mitigations")), (Some("0xb"), Some("0xb")));

    let verified = VerifiedPlatform::from(vlek().verify().unwrap());
    assert_eq!(verified.fact("cloud_provider"), Some("CN=cc-us-east-2.amazonaws.com"));
    assert_eq!(verified.fact("signing_key"), Some("vlek"));
}

#[test]
fn reports_of_version_2_from_masked_chips_are_accepted() {
    let verified = vlek_of_version_2().verify().unwrap();

    assert_eq!((verified.fields().version, verified.fields().cpuid, verified.fields().is_chip_masked()), (2, None, true));
    assert_eq!(verified.product().name(), "Milan");
    assert_eq!(sev_snp::device_id(verified.fields()), None);
}

#[test]
fn the_verifier_answers_as_platform_verifier() {
    let case = dstack_vm();
    let endorsements = Endorsements { certificates: case.chain(), ..Endorsements::default() };
    let anchors = TrustAnchors::hardware();
    let context = Context { anchors: &anchors, endorsements: &endorsements, now: case.time };

    assert_eq!(SevSnp.platform(), Platform::SevSnp);
    assert_eq!(SevSnp.verify(&must_read(&case.report), &context), case.verify().map(VerifiedPlatform::from));
}

#[test]
fn authorities_and_root_may_be_left_out_come_in_any_order_and_in_pem() {
    for case in verifiable() {
        let [vek, ask, ark] = case.chain().try_into().unwrap();
        let bundle = [pem(&ask), pem(&ark), pem(&vek)].concat();
        let foreign = must_read("ca/sev-turin.der");
        for (what, chain) in [
            ("key alone", vec![vek.clone()]),
            ("without root", vec![ask.clone(), vek.clone()]),
            ("without authority", vec![vek.clone(), ark.clone()]),
            ("backwards", vec![ark.clone(), ask.clone(), vek.clone()]),
            ("twice", vec![vek.clone(), ask.clone(), vek.clone(), ask.clone(), ark.clone()]),
            ("PEM, one each", vec![pem(&vek), pem(&ask)]),
            ("PEM, all in one", vec![bundle]),
            ("with an authority of another product", vec![vek.clone(), ask.clone(), foreign]),
        ] {
            let result = case.verify_with(&must_read(&case.report), chain, case.time);
            assert!(result.is_ok(), "{} {what}: {}", case.id, result.unwrap_err());
        }
    }
}

/// No report of this product is public: one is made up around a genuine key, and everything but its signature holds.
#[test]
fn a_genuine_key_of_turin_chains_to_amds_root() {
    let mut report = vec![0; 1184];
    let mut set = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x00, &[5]);
    set(0x34, &[1]);
    set(0x187, &[9]);
    set(0x188, &[0x1a, 0x02]);
    set(0x1a0, &hex::decode("1e550a8ee5cf9f4d").unwrap());
    let vek = must_read("keys/vcek-turin.der");

    let refused = |report: &[u8]| verify(report, vec![vek.clone()], 1_750_000_000, &TrustAnchors::hardware());

    assert_refused(refused(&report), Link::Signature, Fault::Invalid, "made up");
    report[0x180] = 1;
    assert_refused(refused(&report), Link::AttestationKey, Fault::OtherPlatform, "other FMC version");
}

#[test]
fn of_several_keys_the_one_that_fits_is_used() {
    let case = dstack_vm();
    let keys = vec![must_read("keys/vcek-3bbfb6ee.der"), must_read("keys/vlek-296a7c99.der"), must_read(&case.vek)];

    assert!(case.verify_with(&must_read(&case.report), keys, case.time).is_ok());
}

#[test]
fn changed_evidence_is_refused_at_the_link_that_is_broken() {
    use Fault::{Expired, Invalid, Malformed, NotYetValid, OtherPlatform, OtherRoot};
    use Link::{AttestationKey, CertificateChain, Format, Signature};
    let expected = [
        ("milan-measurement", Signature, Invalid),
        ("milan-report-data", Signature, Invalid),
        ("milan-host-data", Signature, Invalid),
        ("milan-policy", Signature, Invalid),
        ("milan-chip-id", AttestationKey, OtherPlatform),
        ("milan-reported-tcb", AttestationKey, OtherPlatform),
        ("milan-vmpl", Signature, Invalid),
        ("milan-sig-r", Signature, Invalid),
        ("milan-sig-s", Signature, Invalid),
        ("milan-sig-algo", Format, Malformed),
        ("milan-truncated", Format, Malformed),
        ("milan-version-0", Format, Malformed),
        ("milan-vek-tampered", CertificateChain, Fault::Missing),
        ("milan-other-chip-vcek", AttestationKey, OtherPlatform),
        ("milan-wrong-product-ca", CertificateChain, OtherRoot),
        ("milan-wrong-ark", CertificateChain, OtherRoot),
        ("milan-vek-not-yet-valid", CertificateChain, NotYetValid),
        ("milan-vek-expired", CertificateChain, Expired),
        ("milan-trailing", Format, Malformed),
        ("vlek-expired", CertificateChain, Expired),
        ("vlek-under-ask", CertificateChain, OtherRoot),
    ];
    let cases = must_cases("negative.json");
    assert_eq!(cases.len(), expected.len());
    for case in cases {
        let (_, link, fault) = expected.iter().find(|(id, ..)| *id == case.id).unwrap();
        assert_refused(case.verify(), *link, *fault, &case.id);
    }
}

#[test]
fn reports_of_every_other_length_are_refused() {
    for case in must_cases("cases.json").iter().chain(&must_cases("negative.json")) {
        let report = [must_read(&case.report), vec![0; 64]].concat();
        for got in (0..report.len()).filter(|len| *len != 1184) {
            assert_eq!(UnverifiedReport::parse(&report[..got]), Err(ReportError::Length { got }), "{}", case.id);
        }
    }
}

#[test]
fn certificates_that_are_cut_off_are_refused() {
    for case in [dstack_vm(), vlek()] {
        let report = must_read(&case.report);
        for place in 0..3 {
            let whole = case.chain();
            for len in (0..whole[place].len()).filter(|len| len % 3 == 0 || len + 9 > whole[place].len()) {
                let mut chain = whole.clone();
                chain[place].truncate(len);
                let result = case.verify_with(&report, chain, case.time);
                assert_refused(result, Link::CertificateChain, Fault::Malformed, &format!("certificate {place} cut to {len}"));
            }
        }
    }
}

#[test]
fn a_report_with_any_byte_changed_is_refused() {
    for case in [dstack_vm(), vlek()] {
        let report = must_read(&case.report);
        for at in (0..report.len()).step_by(STEP) {
            let mut changed = report.clone();
            changed[at] ^= 1 << (at % 8);
            let result = case.verify_with(&changed, case.chain(), case.time);
            assert!(result.is_err(), "{} byte {at:#x}", case.id);
        }
    }
}

/// Between what is signed and the signature stands the name of the algorithm once more, which nothing covers.
#[test]
fn a_certificate_with_any_byte_changed_is_refused() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    for place in 0..3 {
        let whole = case.chain();
        let signed_until = 8 + usize::from(u16::from_be_bytes([whole[place][6], whole[place][7]]));
        let unsigned = signed_until..whole[place].len() - 517;
        assert!(unsigned.len() < 80);
        for at in (place..whole[place].len()).step_by(2 * STEP) {
            let mut chain = whole.clone();
            chain[place][at] ^= 1 << (at % 8);
            let result = case.verify_with(&report, chain, case.time);
            assert!(result.is_err() || unsigned.contains(&at) && place < 2, "certificate {place} byte {at}");
        }
    }
}

#[test]
fn a_root_of_another_vendor_does_not_help() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let anchors = TrustAnchors::hardware().replace(Vendor::Amd, [must_read("ca/ark-genoa.der")]).unwrap();

    assert_refused(verify(&report, case.chain(), case.time, &anchors), Link::CertificateChain, Fault::OtherRoot, "other product");
    let anchors = TrustAnchors::hardware().replace(Vendor::Amd, []).unwrap();
    assert_refused(verify(&report, case.chain(), case.time, &anchors), Link::CertificateChain, Fault::Missing, "no root");
    let chosen = TrustAnchors::hardware().replace(Vendor::Amd, [must_read("ca/ark-milan.der")]).unwrap();
    assert!(verify(&report, case.chain(), case.time, &chosen).is_ok());
}

#[test]
fn a_missing_key_is_called_missing() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let others = vec![must_read("keys/vlek-296a7c99.der"), must_read(&case.ask), must_read("../../../roots/intel-sgx-root-ca.der")];

    let detail = assert_refused(case.verify_with(&report, vec![], case.time), Link::CertificateChain, Fault::Missing, "nothing");
    assert_eq!(detail, "no VCEK certificate was given");
    assert_refused(case.verify_with(&report, others, case.time), Link::CertificateChain, Fault::Missing, "only others");
    let detail = assert_refused(
        case.verify_with(&report, vec![b"0garbage".to_vec()], case.time),
        Link::CertificateChain,
        Fault::Malformed,
        "garbage",
    );
    assert!(detail.contains("cannot be read"), "{detail}");
}

#[test]
fn heaps_of_certificates_are_refused() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let vek = must_read(&case.vek);
    let result = |count| case.verify_with(&report, vec![vek.clone(); count], case.time);
    assert!(result(32).is_ok());
    assert_refused(result(33), Link::CertificateChain, Fault::Malformed, "33 certificates");
    let large = [vec![0x30], vec![0; 16 << 10]].concat();
    assert_refused(case.verify_with(&report, vec![vek.clone(), large], case.time), Link::CertificateChain, Fault::Malformed, "large");
    let zeros = vec![0; 10 << 20];
    assert_refused(case.verify_with(&report, vec![zeros.clone()], case.time), Link::CertificateChain, Fault::Malformed, "10 MiB of zeros");
    assert_refused(case.verify_with(&zeros, case.chain(), case.time), Link::Format, Fault::Malformed, "10 MiB of zeros");
}

// ---- envelopes

/// An SNP guest's envelope, taken apart.
struct Guest {
    report: Vec<u8>,
    certificates: Vec<Vec<u8>>,
    mr_config: String,
    vm_config: VmConfig,
}

impl Guest {
    fn must_decode(bytes: &[u8]) -> Self {
        let envelope = Envelope::decode(bytes).unwrap();
        assert_eq!(envelope.report_data.as_slice(), dstack_vm().must_field("report_data"));
        assert_eq!(envelope.runtime_events.len(), 9);
        let vm_config = serde_json::from_str(&envelope.vm_config()).unwrap();
        let PlatformEvidence::SevSnp { report, certificates, mr_config } = envelope.evidence else { panic!("not of SEV-SNP") };
        Self { report, certificates, mr_config, vm_config }
    }

    /// The envelope around the report of [`dstack_vm`].
    fn must_read() -> Self {
        Self::must_decode(&must_read("dstack-vm.envelope.bin"))
    }

    /// The same report in an envelope of an earlier release, with other measurement material.
    fn must_read_early() -> Self {
        Self::must_decode(&std::fs::read(format!("{CRATE}/tests/testdata/envelopes/sev-snp-attestation.bin")).unwrap())
    }
}

#[test]
fn envelopes_of_genuine_guests_bring_report_certificates_and_configuration() {
    let (guest, early) = (Guest::must_read(), Guest::must_read_early());

    assert_eq!(guest.report, must_read(&dstack_vm().report));
    assert_eq!((early.report, early.mr_config), (guest.report.clone(), guest.mr_config));
    assert_eq!((guest.vm_config.cpu_count, early.vm_config.cpu_count), (2, 2));
    assert_eq!((guest.certificates.len(), early.certificates.len()), (2, 0));
    verify(&guest.report, guest.certificates, dstack_vm().time, &TrustAnchors::hardware()).unwrap();
}

// ---- the VM behind a report

#[test]
fn a_dstack_vm_is_known_by_host_data_and_measurement() {
    let guest = Guest::must_read();
    let verified = dstack_vm().verify().unwrap();
    let fields = verified.fields();

    sev_snp::check_guest(fields).unwrap();
    let identity = sev_snp::check_host_data(fields, &guest.mr_config).unwrap();
    let proof = sev_snp::check_launch(fields, &guest.vm_config).unwrap();

    assert_eq!(identity.app_id.unwrap().to_string(), "86e59625be93207bc2351c4d1bba20037cec8e16");
    assert_eq!(identity.key_provider, KeyProviderKind::Kms);
    assert_eq!(proof.os_image_hash.to_string(), "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352");
    assert_eq!((proof.shape.vcpus, proof.shape.cpu.name()), (2, Some("EPYC")));
    assert_eq!(sev_snp::mr_system(fields), <[u8; 32]>::from(Sha256::digest(fields.measurement)));
    let both = [fields.measurement.as_slice(), &fields.host_data].concat();
    assert_eq!(sev_snp::mr_aggregated(fields), <[u8; 32]>::from(Sha256::digest(both)));
    assert_eq!(sev_snp::device_id(fields), Some(Sha256::digest(fields.chip_id).into()));
}

#[test]
fn another_identity_than_the_bound_one_is_refused() {
    let mr_config = Guest::must_read().mr_config;
    let mut fields = dstack_vm().verify().unwrap().fields().clone();
    let other = mr_config.replacen("86e5", "86e6", 1);

    assert!(matches!(sev_snp::check_host_data(&fields, &other), Err(HostDataError::Differs { .. })));
    assert!(matches!(sev_snp::check_host_data(&fields, ""), Err(HostDataError::Differs { .. })));
    fields.host_data[31] ^= 1;
    assert!(matches!(sev_snp::check_host_data(&fields, &mr_config), Err(HostDataError::Differs { .. })));
    fields.host_data = [0; 32];
    assert_eq!(sev_snp::check_host_data(&fields, &mr_config), Err(HostDataError::NotSet));
    fields.host_data = dstack_manifest::mr_config_hash_v3("{}");
    assert!(matches!(sev_snp::check_host_data(&fields, "{}"), Err(HostDataError::Document(_))));
}

#[test]
fn guests_that_nobody_should_trust_are_named() {
    let fields = dstack_vm().verify().unwrap().fields().clone();
    let with_policy = |bit: u32| {
        let mut fields = fields.clone();
        fields.policy.0 |= 1 << bit;
        sev_snp::check_guest(&fields)
    };

    assert_eq!(with_policy(19), Err(GuestFault::Debug));
    assert_eq!(with_policy(18), Err(GuestFault::MigrationAgent));
    for bit in [26, 27, 63] {
        assert_eq!(with_policy(bit), Err(GuestFault::UnknownPolicy { bits: 1 << bit }));
    }
    for bit in [0, 8, 16, 17, 20, 21, 22, 23, 24, 25] {
        assert_eq!(with_policy(bit), Ok(()), "bit {bit}");
    }
    let inner = SnpFields { vmpl: 1, ..fields };
    assert_eq!(sev_snp::check_guest(&inner), Err(GuestFault::Vmpl { vmpl: 1 }));
    let debug = verifiable().into_iter().find(|case| case.debug).unwrap().verify().unwrap();
    assert_eq!(sev_snp::check_guest(debug.fields()), Err(GuestFault::Debug));
}

#[test]
fn a_measurement_that_is_not_the_images_is_explained() {
    let config = Guest::must_read().vm_config;
    let fields = dstack_vm().verify().unwrap().fields().clone();
    let changed = |key: &str, value: Value| {
        let mut document: Value = serde_json::from_str(config.sev_snp_measurement.as_deref().unwrap()).unwrap();
        document[key] = value;
        VmConfig { sev_snp_measurement: Some(document.to_string()), ..config.clone() }
    };

    let error = sev_snp::check_launch(&fields, &changed("vcpus", json!(4))).unwrap_err();
    assert!(error.to_string().ends_with("; it is the same image with 2 vCPUs of EPYC"), "{error}");
    let error = sev_snp::check_launch(&fields, &changed("vcpu_type", json!("EPYC-Milan"))).unwrap_err();
    assert!(error.to_string().ends_with("; it is the same image with 2 vCPUs of EPYC"), "{error}");
    let other = SnpFields { measurement: [1; 48], ..fields.clone() };
    let error = sev_snp::check_launch(&other, &config).unwrap_err();
    assert!(matches!(&error, LaunchMismatch::Differs { found: None, .. }), "{error:?}");
    assert!(!error.to_string().contains("same image"), "{error}");
    let weak = sev_snp::check_launch(&fields, &changed("guest_features", json!(0x9))).unwrap_err();
    assert_eq!(weak, LaunchMismatch::GuestFeatures { bits: 9 });
    assert!(matches!(sev_snp::check_launch(&fields, &changed("vcpus", json!(0))), Err(LaunchMismatch::Shape(_))));
    assert!(matches!(sev_snp::check_launch(&fields, &changed("vcpus", json!("2"))), Err(LaunchMismatch::Json { .. })));
    let other_hash = OsImageHash::new([3; 32]);
    let renamed = VmConfig { os_image_hash: Some(other_hash), ..config.clone() };
    assert!(
        matches!(sev_snp::check_launch(&fields, &renamed), Err(LaunchMismatch::Document { os_image_hash, .. }) if os_image_hash == other_hash)
    );
    let early = Guest::must_read_early().vm_config;
    let unbound = sev_snp::check_launch(&fields, &early).unwrap_err();
    assert!(matches!(unbound, LaunchMismatch::Unbound { .. }) && unbound.lacks_material());
    assert!(!weak.lacks_material() && !error.lacks_material() && LaunchMismatch::NoImageHash.lacks_material());
    let empty = VmConfig { sev_snp_measurement: Some("{}".into()), ..config.clone() };
    assert!(matches!(sev_snp::check_launch(&fields, &empty), Err(LaunchMismatch::Json { .. })));
    let without = VmConfig { sev_snp_measurement: None, ..config.clone() };
    assert!(matches!(sev_snp::check_launch(&fields, &without), Err(LaunchMismatch::NoDocument { .. })));
    let nameless = VmConfig { os_image_hash: None, ..config };
    assert_eq!(sev_snp::check_launch(&fields, &nameless), Err(LaunchMismatch::NoImageHash));
}

#[test]
fn tcb_versions_count_as_settled_only_if_all_four_are_one() {
    let fields = vlek_of_version_2().verify().unwrap().fields().clone();
    assert!(fields.is_tcb_settled());
    let other = TcbVersion([1; 8]);
    for changed in [
        SnpFields { current_tcb: other, ..fields.clone() },
        SnpFields { committed_tcb: other, ..fields.clone() },
        SnpFields { launch_tcb: other, ..fields.clone() },
        SnpFields { reported_tcb: other, ..fields.clone() },
    ] {
        assert!(!changed.is_tcb_settled());
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(report in proptest::collection::vec(any::<u8>(), 1184), certificate in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = UnverifiedReport::parse(&report);
        let mut forged = report;
        forged[..4].copy_from_slice(&5_u32.to_le_bytes());
        forged[0x34..0x38].copy_from_slice(&1_u32.to_le_bytes());
        prop_assert!(verify(&forged, vec![certificate.clone(), [vec![0x30], certificate].concat()], 1_700_000_000, &TrustAnchors::hardware()).is_err());
    }
}
