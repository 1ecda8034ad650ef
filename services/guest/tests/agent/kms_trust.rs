//! Which KMS a guest shows its evidence to and takes keys from.

use std::sync::Arc;

use dstack_api::UserFacing as _;
use dstack_attestation::{Attestation, Policy, TrustAnchors, Verifier};
use dstack_attester::{Attester, Options};
use dstack_guest::{
    kms_client::{KmsDirectory, KmsError, KmsIdentity},
    kms_trust::KmsTrust,
};
use dstack_manifest::{AppId, ComposeHash, InstanceId, SysConfig};
use dstack_ra_tls::{CertKey, EvidenceVerifier, VerificationLimits, collateral::CollateralClient, ra_tls_report_data};
use dstack_tee_simulator::QuotingEnclave;
use dstack_testkit::{
    software_td::{identity_events, quote_body, vm_config},
    software_tee::SoftwareTee,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    kms::Kms,
    tee::{Td, must_serve},
};

/// A vendor whose TDs are believed, a KMS, and a guest.
struct Bed {
    tee: SoftwareTee,
    kms: Arc<Kms>,
    identity: KmsIdentity,
    directory: tempfile::TempDir,
}

impl Bed {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tee = SoftwareTee::start(directory.path()).await;
        let device = directory.path().join("td.sock");
        must_serve(Td::new(), &device).await;
        let options = Options {
            log_directory: directory.path().join("log"),
            simulated_endpoint: format!("unix:{}", device.display()),
            ..Options::default()
        };
        let attester = tokio::task::spawn_blocking(move || Arc::new(Attester::open(&options).unwrap())).await.unwrap();
        let identity = KmsIdentity { attester, sys_config: "{}".to_owned(), check: Arc::new(|_| Ok(())) };
        Self { tee, kms: Kms::new(false), identity, directory }
    }

    /// Evidence of a TD that binds `key`.
    fn evidence(&self, key: &CertKey) -> Vec<u8> {
        let compose_hash = ComposeHash::new([5; 32]);
        let runtime_events = identity_events(&AppId::new([5; 20]), &compose_hash, &InstanceId::NONE);
        let event_log: Vec<_> = runtime_events.iter().map(dstack_event_log::RuntimeEvent::to_event).collect();
        let body = quote_body(&compose_hash, &event_log, ra_tls_report_data(&key.spki_der()));
        let quote = QuotingEnclave::new(&self.tee.vendor).quote(&body);
        let config = serde_json::json!({ "vm_config": serde_json::to_string(&vm_config()).unwrap() }).to_string();
        Attestation { quote, event_log, runtime_events, report_data: body.report_data, config }.stripped().encode()
    }

    /// A KMS whose certificate has evidence over `attested`, or none.
    async fn serve(&self, key: CertKey, attested: Option<&CertKey>) -> String {
        let evidence = attested.map(|attested| self.evidence(attested));
        self.kms.must_serve_with(key, evidence).await
    }

    fn trust(&self, is_pinned: bool, anchors: TrustAnchors, collateral_url: &str) -> KmsTrust {
        let collateral = CollateralClient::new(collateral_url).unwrap();
        let verification = EvidenceVerifier::new(Verifier::new(anchors, Policy::default()), collateral, VerificationLimits::default());
        KmsTrust::new(is_pinned.then(|| self.kms.root.spki_der().to_vec()), Arc::new(verification))
    }

    /// Trust in this bed's vendor.
    fn usual_trust(&self, is_pinned: bool) -> KmsTrust {
        self.trust(is_pinned, self.anchors(), &self.tee.collateral_url)
    }

    fn anchors(&self) -> TrustAnchors {
        let pem = std::fs::read(self.directory.path().join("tee/root.pem")).unwrap();
        let root = CertificateDer::from_pem_slice(&pem).unwrap();
        TrustAnchors::hardware().danger_simulated_root(root.to_vec()).unwrap()
    }

    async fn connect(&self, url: String, trust: KmsTrust) -> Result<String, KmsError> {
        let directory = KmsDirectory { urls: vec![url], trust };
        directory.first(&self.identity, |session| async move { Ok(session.url) }).await
    }
}

fn key() -> CertKey {
    CertKey::generate().unwrap()
}

fn copy(key: &CertKey) -> CertKey {
    CertKey::from_pem(&key.to_pem()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_that_proves_its_tee_needs_no_pin() {
    let (bed, key) = (Bed::start().await, key());
    let url = bed.serve(copy(&key), Some(&key)).await;

    assert_eq!(bed.connect(url.clone(), bed.usual_trust(false)).await.unwrap(), url);
    bed.connect(url, bed.usual_trust(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_without_evidence_must_be_pinned() {
    let bed = Bed::start().await;
    let url = bed.serve(key(), None).await;

    let error = bed.connect(url.clone(), bed.usual_trust(false)).await.unwrap_err();

    assert_eq!(error.code(), "guest/kms-not-believed");
    assert!(error.fix().contains("key_provider_id"), "{}", error.fix());
    bed.connect(url, bed.usual_trust(true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_over_another_key_is_refused_even_of_a_pinned_kms() {
    let bed = Bed::start().await;
    let url = bed.serve(key(), Some(&key())).await;

    for is_pinned in [false, true] {
        assert_eq!(bed.connect(url.clone(), bed.usual_trust(is_pinned)).await.unwrap_err().code(), "guest/kms-not-believed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_under_an_unknown_root_is_refused() {
    let (bed, key) = (Bed::start().await, key());
    let url = bed.serve(copy(&key), Some(&key)).await;

    let trust = bed.trust(false, TrustAnchors::hardware(), &bed.tee.collateral_url);

    assert_eq!(bed.connect(url, trust).await.unwrap_err().code(), "guest/kms-not-believed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_that_cannot_be_judged_helps_nobody_and_a_pin_does() {
    let (bed, key) = (Bed::start().await, key());
    let url = bed.serve(copy(&key), Some(&key)).await;
    let without_collateral = |is_pinned| bed.trust(is_pinned, bed.anchors(), "http://127.0.0.1:9");

    assert_eq!(bed.connect(url.clone(), without_collateral(false)).await.unwrap_err().code(), "guest/kms-not-believed");
    bed.connect(url, without_collateral(true)).await.unwrap();
}

#[test]
fn the_hosts_source_of_collateral_is_used_and_must_be_an_address() {
    let with = |url: &str| SysConfig { pccs_url: Some(url.to_owned()), ..SysConfig::default() };

    assert!(KmsTrust::in_hardware(None, &SysConfig::default()).is_ok());
    assert!(KmsTrust::in_hardware(None, &with("http://127.0.0.1:8081")).is_ok());
    assert!(KmsTrust::in_hardware(None, &with("not an address")).is_err());
}
