//! Guests of SEV-SNP: keys only where the configuration says so, only for their own evidence, and never beside the policy.
//!
//! Launch measurement and OS image are those of a genuine guest; the chip that signs is a software one under a root of `[danger]`.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::{
    RpcError,
    kms::{AppKeyResponse, GetAppKeyRequest, KmsClient},
};
use dstack_attestation::{Envelope, PlatformEvidence, sev_snp::UnverifiedReport};
use dstack_kms::config::{AcceptedTee, AttestationFile, ConfigFile};
use dstack_manifest::mr_config_hash_v3;
use dstack_ra_tls::{
    CertKey, CertificateAuthority, LeafProfile, Validity, ra_tls_report_data,
    tls::{self, Identity},
    usage,
};
use dstack_rpc::{Client, Endpoint};
use dstack_testkit::software_snp::Machine;
use testbed::{Kms, Stack, anonymous, der_of, now};

/// A genuine guest with the measurement document of its image.
const GENUINE: &[u8] = include_bytes!("../../../crates/attestation/tests/testdata/snp/dstack-vm.envelope.bin");
const IMAGE: &str = "f69c8e5031ec2b269bbc08839ce02cb98ee255d695626f941f4b37b95946d352";

/// A guest. Tests change single parts before it connects.
struct SnpGuest {
    machine: Machine,
    root: Vec<u8>,
    key: CertKey,
    mr_config: String,
    vm_config: String,
    measurement: [u8; 48],
    has_certificates: bool,
    bound_key: Option<Vec<u8>>,
}

impl SnpGuest {
    fn new() -> Self {
        let genuine = Envelope::decode(GENUINE).unwrap();
        let vm_config = genuine.vm_config();
        let PlatformEvidence::SevSnp { report, mr_config, .. } = genuine.evidence else { panic!("not of SEV-SNP") };
        let mut document: serde_json::Value = serde_json::from_str(&mr_config).unwrap();
        document["app_id"] = "01".repeat(20).into();
        document["compose_hash"] = "01".repeat(32).into();
        document["instance_id"] = "02".repeat(20).into();
        let machine = Machine::milan();
        Self {
            root: machine.root.der(),
            machine,
            key: CertKey::generate().unwrap(),
            mr_config: document.to_string(),
            vm_config,
            measurement: UnverifiedReport::parse(&report).unwrap().fields().measurement,
            has_certificates: true,
            bound_key: None,
        }
    }

    fn envelope(&self) -> Vec<u8> {
        let spki = self.bound_key.clone().unwrap_or_else(|| self.key.spki_der());
        let report_data = ra_tls_report_data(&spki);
        let host_data = mr_config_hash_v3(&self.mr_config);
        let machine = self.machine.clone().of_guest(&self.measurement, &host_data, &report_data);
        let certificates = if self.has_certificates { vec![machine.key.der(), machine.authority.der()] } else { Vec::new() };
        let evidence = PlatformEvidence::SevSnp { report: machine.signed_report(), certificates, mr_config: self.mr_config.clone() };
        let config = serde_json::json!({ "vm_config": self.vm_config }).to_string();
        Envelope { evidence, runtime_events: Vec::new(), report_data, config, report_data_payload: None }.encode()
    }

    async fn get_app_key(&self, kms: &Kms) -> Result<AppKeyResponse, RpcError> {
        let answer = KmsClient(anonymous(&kms.url)).get_temp_ca_cert(&dstack_api::kms::Empty {}).await.unwrap();
        let authority = CertificateAuthority::load(&answer.temp_ca_cert, CertKey::from_pem(&answer.temp_ca_key).unwrap()).unwrap();
        let profile = LeafProfile::guest_client(self.envelope());
        let leaf = authority.issue_leaf(&self.key.spki_der(), &profile, Validity::starting(now(), 3600)).unwrap();
        let identity = Identity { chain: vec![leaf], key: CertKey::from_pem(&self.key.to_pem()).unwrap() };
        let config = tls::pinned_client(&der_of(&answer.ca_cert), usage::KMS_RPC, Some(&identity)).unwrap();
        let client = KmsClient(Client::new(Endpoint::parse(&kms.url).unwrap()).with_tls(config));
        client.get_app_key(&GetAppKeyRequest { api_version: 1, vm_config: self.vm_config.clone(), ..GetAppKeyRequest::default() }).await
    }
}

/// A stack whose policy allows `guest`, and a KMS that believes its root and these kinds of TEE.
async fn kms_for(guest: &SnpGuest, accept: &[AcceptedTee], tee_variants: &str) -> (Stack, Kms) {
    let stack = Stack::start().await;
    stack.write_allow_list(&format!(
        "version = 1\ntee_variants = [{tee_variants}]\n[danger]\nallow_simulated = true\n[[os_images]]\nhash = \"{IMAGE}\"\n\
         [[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
        "01".repeat(20),
        "01".repeat(32)
    ));
    let root = stack.path("ark.der");
    std::fs::write(&root, &guest.root).unwrap();
    let attestation = AttestationFile { accept: accept.to_vec(), amd_kds_url: String::new() };
    let settings = stack.settings();
    let danger = dstack_kms::config::Danger { simulated_root: Some(root), ..settings.danger.clone() };
    let kms = stack.kms_with(ConfigFile { attestation, danger, ..settings }).await;
    (stack, kms)
}

const BOTH: [AcceptedTee; 2] = [AcceptedTee::Tdx, AcceptedTee::SevSnp];
const ALLOWED: &str = "\"dstack-amd-sev-snp\"";

#[tokio::test(flavor = "multi_thread")]
async fn an_snp_guest_gets_its_keys_where_sev_snp_is_accepted() {
    let guest = SnpGuest::new();
    let (_stack, kms) = kms_for(&guest, &BOTH, ALLOWED).await;

    let keys = guest.get_app_key(&kms).await.unwrap();
    let again = SnpGuest { key: CertKey::generate().unwrap(), ..guest }.get_app_key(&kms).await.unwrap();

    assert_eq!((keys.disk_crypt_key.len(), hex::encode(&keys.os_image_hash)), (32, IMAGE.to_owned()));
    assert_eq!((keys.disk_crypt_key, keys.k256_key), (again.disk_crypt_key, again.k256_key));
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_an_snp_guest_hears_that_its_kind_is_not_accepted() {
    let guest = SnpGuest::new();
    let (_stack, kms) = kms_for(&guest, &AttestationFile::default().accept, ALLOWED).await;

    let error = guest.get_app_key(&kms).await.unwrap_err();

    assert_eq!(error.code, "ra-tls/sev-snp-not-enabled");
    assert!(error.message.contains("sev-snp") && error.fix.contains("attestation.accept"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_decides_about_snp_guests_as_well() {
    let guest = SnpGuest::new();
    let (_stack, kms) = kms_for(&guest, &BOTH, "\"dstack-tdx\"").await;

    assert_eq!(guest.get_app_key(&kms).await.unwrap_err().code, "kms/tee-variant-not-allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_an_snp_guests_evidence_matters() {
    let honest = SnpGuest::new();
    let (_stack, kms) = kms_for(&honest, &BOTH, ALLOWED).await;
    let refused = async |change: fn(&mut SnpGuest)| {
        let mut guest = SnpGuest { machine: honest.machine.clone(), ..SnpGuest::new() };
        change(&mut guest);
        guest.get_app_key(&kms).await.unwrap_err().code
    };

    assert_eq!(refused(|guest| guest.bound_key = Some(CertKey::generate().unwrap().spki_der())).await, "kms/evidence-refused");
    assert_eq!(refused(|guest| guest.measurement[0] ^= 1).await, "kms/evidence-refused");
    assert_eq!(refused(|guest| guest.has_certificates = false).await, "kms/evidence-refused");
    assert_eq!(refused(|guest| guest.machine.set(0x08, &0xb_0000_u64.to_le_bytes())).await, "kms/evidence-refused", "debug");
    assert_eq!(
        refused(|guest| guest.mr_config = guest.mr_config.replace(&"01".repeat(32), &"05".repeat(32))).await,
        "kms/compose-hash-not-allowed"
    );
    let stranger = SnpGuest {
        machine: Machine { report_signed_by: dstack_testkit::software_snp::Key::OtherChip, ..honest.machine.clone() },
        ..SnpGuest::new()
    };
    assert_eq!(stranger.get_app_key(&kms).await.unwrap_err().code, "kms/evidence-refused");
}
