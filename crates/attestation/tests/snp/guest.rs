//! The VM behind a report.

use dstack_attestation::{
    Envelope, PlatformEvidence, TrustAnchors,
    sev_snp::{self, GuestFault, HostDataError, LaunchMismatch, SnpFields, TcbVersion},
};
use dstack_manifest::{KeyProviderKind, OsImageHash, VmConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cases::{CRATE, dstack_vm, must_read, verifiable, verify, vlek_of_version_2};

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
