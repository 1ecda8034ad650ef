//! What genuine reports say, and which certificates they need.

use dstack_attestation::{
    AnchorKind, Context, Endorsements, Fault, Link, Platform, PlatformVerifier, TcbStatus, TrustAnchors, Vendor, VerifiedPlatform,
    sev_snp::{self, SevSnp, SigningKey, SnpFields, UnverifiedReport},
};
use serde_json::{Value, json};

use crate::cases::{assert_refused, dstack_vm, must_cases, must_read, pem, verifiable, verify, vlek, vlek_of_version_2};

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
