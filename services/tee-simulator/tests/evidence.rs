//! From launch to verdict: the production path of attester, collateral client and verifier over the software TEE.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests panic on purpose")]

mod support;

use dstack_attestation::{Check, Evidence, Fault, MrScope, Policy, TcbStatus, TrustAnchors, Verifier, VerifyError};
use dstack_attester::{Attester, SimulatedDevice};
use dstack_event_log::{EventVersion, names};
use dstack_manifest::{ComposeHash, InstanceId, mr_config_id_v1};
use dstack_ra_tls::{
    CaProfile, CertKey, CertificateAuthority, LeafProfile, RaTlsCertificate, Validity, collateral::CollateralClient, ra_tls_report_data,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use support::{World, must_launch};

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

const APP_COMPOSE: &[u8] = b"{\"name\":\"hello\"}";

fn must_open_attester(world: &World) -> Attester {
    let endpoint = format!("unix:{}", world.device_socket().display());
    let device = SimulatedDevice::connect(&endpoint).unwrap();
    Attester::with_device(Box::new(device), &world.directory.path().join("log")).unwrap()
}

fn must_measure_boot(attester: &Attester) {
    let compose_hash = ComposeHash::of(APP_COMPOSE);
    let app_id = compose_hash.default_app_id();
    let events: [(&str, &[u8]); 5] = [
        (names::SYSTEM_PREPARING, b""),
        (names::APP_ID, app_id.as_bytes()),
        (names::COMPOSE_HASH, compose_hash.as_bytes()),
        (names::INSTANCE_ID, &[7; 20]),
        (names::BOOT_MR_DONE, b""),
    ];
    for (name, payload) in events {
        attester.extend_runtime_event(name, payload, EventVersion::V1).unwrap();
    }
}

fn simulated(root_pem: &std::path::Path) -> TrustAnchors {
    let root = CertificateDer::from_pem_file(root_pem).unwrap();
    TrustAnchors::hardware().danger_simulated_root(root.to_vec()).unwrap()
}

fn sys_config(world: &World) -> String {
    serde_json::json!({ "vm_config": serde_json::to_string(&world.vm_config).unwrap() }).to_string()
}

fn refused(result: Result<dstack_attestation::VerifiedEvidence, VerifyError>) -> VerifyError {
    result.map(|_| ()).unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guest_evidence_is_verified_and_says_simulated() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    let compose_hash = ComposeHash::of(APP_COMPOSE);
    must_launch(&addresses.control_socket, "vm1", &world.launch(mr_config_id_v1(&compose_hash))).await;
    let attester = must_open_attester(&world);
    must_measure_boot(&attester);
    let nonce = [0x5a; 64];

    let quoted = attester.quote(&nonce, &sys_config(&world)).unwrap();

    let collateral = CollateralClient::new(&format!("http://{}", addresses.collateral)).unwrap();
    let endorsements = collateral.with_anchors(simulated(&addresses.root_pem)).endorsements(&quoted.quote).await.unwrap();
    let mut evidence = Evidence::from(quoted.attestation.clone());
    evidence.app_compose = Some(APP_COMPOSE.to_vec());
    let verifier = Verifier::new(simulated(&addresses.root_pem), Policy::strict());
    let verified = verifier.verify(&evidence, &endorsements, unix_now(), Some(&nonce)).unwrap();
    assert!(verified.is_simulated());
    assert_eq!(verified.tcb_status(), TcbStatus::UpToDate);
    assert_eq!(verified.os_image_hash(), world.vm_config.os_image_hash.as_ref());
    assert_eq!(verified.claims().compose_hash, Some(compose_hash));
    assert_eq!(verified.claims().app_id, Some(compose_hash.default_app_id()));
    assert_eq!(verified.claims().instance_id, InstanceId::try_from(&[7_u8; 20][..]).unwrap());
    assert!(verified.acpi_tables_computed() && verified.claims().boot_time_complete);
    assert_eq!(verified.mr_aggregated(MrScope::BootTime), verified.mr_aggregated(MrScope::Runtime));
    for check in [Check::QuoteSignature, Check::RuntimeLog, Check::BootLog, Check::MrConfigId, Check::OsImage] {
        assert!(verified.report().passed(check), "{check}");
    }

    // The same evidence, one thing changed at a time.
    let error =
        refused(Verifier::new(TrustAnchors::hardware(), Policy::strict()).verify(&evidence, &endorsements, unix_now(), Some(&nonce)));
    assert!(matches!(*error.reason, dstack_attestation::Reason::Signature { fault: Fault::OtherRoot, .. }), "{error}");
    assert_eq!(refused(verifier.verify(&evidence, &endorsements, unix_now(), Some(&[0; 64]))).check, Check::ReportData);
    assert_eq!(refused(verifier.verify(&evidence, &endorsements, unix_now() + 40 * 86_400, Some(&nonce))).check, Check::QuoteSignature);
    let other = Evidence { app_compose: Some(b"{}".to_vec()), ..evidence.clone() };
    assert_eq!(refused(verifier.verify(&other, &endorsements, unix_now(), Some(&nonce))).check, Check::Identity);
    let mut shape = world.vm_config.clone();
    shape.cpu_count = 3;
    let other = evidence.clone().with_vm_config(serde_json::to_string(&shape).unwrap());
    assert_eq!(refused(verifier.verify(&other, &endorsements, unix_now(), Some(&nonce))).check, Check::OsImage);
    let other = evidence.with_vm_config("");
    assert_eq!(refused(verifier.verify(&other, &endorsements, unix_now(), Some(&nonce))).check, Check::OsImage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_with_stripped_evidence_is_verified_and_binds_its_key() {
    let world = World::new();
    let (addresses, _daemon) = world.must_start().await;
    must_launch(&addresses.control_socket, "vm1", &world.launch([0; 48])).await;
    let attester = must_open_attester(&world);
    must_measure_boot(&attester);
    let temp_ca =
        CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::generate().unwrap(), Validity::starting(unix_now(), 3600))
            .unwrap();
    let (key, other_key) = (CertKey::generate().unwrap(), CertKey::generate().unwrap());
    let quoted = attester.quote(&ra_tls_report_data(&key.spki_der()), &sys_config(&world)).unwrap();
    let profile = LeafProfile::guest_client(quoted.attestation.stripped().encode());
    let issue = |key: &CertKey| temp_ca.issue_leaf(&key.spki_der(), &profile, Validity::starting(unix_now(), 3600)).unwrap();

    let (good, foreign) = (issue(&key), issue(&other_key));

    let collateral = CollateralClient::new(&format!("http://{}", addresses.collateral)).unwrap();
    let endorsements = collateral.with_anchors(simulated(&addresses.root_pem)).endorsements(&quoted.quote).await.unwrap();
    let verifier = Verifier::new(simulated(&addresses.root_pem), Policy::strict());
    let peer = RaTlsCertificate::parse(&good).unwrap().verify(&verifier, &endorsements, unix_now(), "").unwrap();
    assert_eq!(peer.evidence().claims().compose_hash, Some(ComposeHash::of(APP_COMPOSE)));
    assert_eq!(peer.spki_der(), key.spki_der());
    let error = RaTlsCertificate::parse(&foreign).unwrap().verify(&verifier, &endorsements, unix_now(), "").map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("report-data"), "{error}");
}
