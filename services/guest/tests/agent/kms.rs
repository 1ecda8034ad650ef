//! Certificates signed by a KMS.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dstack_api::{RpcError, kms::*};
use dstack_attestation::UnverifiedQuote;
use dstack_guest::kms_client::validity;
use dstack_manifest::KeyProviderKind;
use dstack_ra_tls::{CaProfile, CertKey, CertRequest, CertificateAuthority, LeafProfile, RaTlsCertificate, ra_tls_report_data, tls, usage};
use dstack_rpc::{Caller, GetPolicy, Listener, mount, serve};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::fixture::{APP_ID, Guest, PUBLISHED_KEYS, Setup};

pub(crate) struct Kms {
    pub(crate) root: CertificateAuthority,
    temp: CertificateAuthority,
    authorities_given: AtomicUsize,
    signed: AtomicUsize,
    gives_other_keys: bool,
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

impl Kms {
    pub(crate) fn new(gives_other_keys: bool) -> Arc<Self> {
        let authority = |profile| CertificateAuthority::self_signed(profile, CertKey::generate().unwrap(), validity()).unwrap();
        Arc::new(Self {
            root: authority(CaProfile::KmsRoot),
            temp: authority(CaProfile::ClientTemp),
            authorities_given: AtomicUsize::new(0),
            signed: AtomicUsize::new(0),
            gives_other_keys,
        })
    }

    /// Serves on a port of its own; returns the address.
    async fn must_serve(self: &Arc<Self>) -> String {
        self.must_serve_with(CertKey::generate().unwrap(), None).await
    }

    /// Serves with this key and evidence in its certificate.
    pub(crate) async fn must_serve_with(self: &Arc<Self>, key: CertKey, evidence: Option<Vec<u8>>) -> String {
        let leaf = self.root.issue_leaf(&key.spki_der(), &LeafProfile::kms_rpc("kms.test", evidence), validity()).unwrap();
        let config = tls::server(&tls::Identity { chain: vec![leaf], key }, self.temp.certificate_der()).unwrap();
        let listener = Listener::tls(([127, 0, 0, 1], 0).into(), config).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, mount("/prpc", KmsServer(Arc::clone(self)), GetPolicy::Refuse), std::future::pending()));
        format!("https://{address}")
    }

    /// A guest whose keys came from this KMS at `url`, and that was given `urls`.
    async fn must_start_guest(&self, url: &str, urls: &[String]) -> Guest {
        let mut keys: Value = serde_json::from_str(PUBLISHED_KEYS).unwrap();
        keys["key_provider"] = json!({"Kms": {
            "url": url, "pubkey": hex::encode(self.root.spki_der()), "tmp_ca_key": "", "tmp_ca_cert": "",
        }});
        let mut setup = Setup { keys: keys.to_string(), kms_urls: urls.to_vec(), ..Setup::default() };
        setup.document.set_key_provider(KeyProviderKind::Kms);
        Guest::start(setup).await.unwrap()
    }
}

impl KmsRpc for Kms {
    type Caller = Caller;

    async fn get_temp_ca_cert(&self, _: Caller, _: Empty) -> Result<GetTempCaCertResponse, RpcError> {
        self.authorities_given.fetch_add(1, Ordering::SeqCst);
        Ok(GetTempCaCertResponse {
            temp_ca_cert: self.temp.certificate_pem().to_owned(),
            temp_ca_key: self.temp.key_pem().to_string(),
            ca_cert: self.root.certificate_pem().to_owned(),
            nonce: Vec::new(),
        })
    }

    async fn sign_cert(&self, _: Caller, request: SignCertRequest) -> Result<SignCertResponse, RpcError> {
        assert_eq!(request.api_version, 2);
        assert!(request.vm_config.contains("cpu_count"));
        let csr = CertRequest::verify(2, &request.csr, &request.signature).unwrap();
        let quote = UnverifiedQuote::parse(&csr.evidence().unwrap().quote).unwrap();
        assert_eq!(quote.fields().report_data, ra_tls_report_data(&csr.pubkey), "the evidence is for the key");
        self.signed.fetch_add(1, Ordering::SeqCst);
        let app_id = APP_ID.parse().unwrap();
        let app_ca = self.root.issue_app_ca(&app_id, CertKey::generate().unwrap(), validity()).unwrap();
        let profile = LeafProfile {
            common_name: csr.config.subject,
            subject_alt_names: csr.config.subject_alt_names,
            usage: Some(usage::APP_CUSTOM.to_owned()),
            app_id: Some(app_id),
            ..LeafProfile::default()
        };
        let spki = if self.gives_other_keys { CertKey::generate().unwrap().spki_der() } else { csr.pubkey };
        let leaf = app_ca.issue_leaf(&spki, &profile, validity()).unwrap();
        let chain = vec![pem(&leaf), app_ca.certificate_pem().to_owned(), self.root.certificate_pem().to_owned()];
        Ok(SignCertResponse { certificate_chain: chain, release_proof: String::new() })
    }

    async fn get_app_key(&self, _: Caller, _: GetAppKeyRequest) -> Result<AppKeyResponse, RpcError> {
        Err(RpcError::internal("not asked for"))
    }

    async fn get_kms_key(&self, _: Caller, _: GetKmsKeyRequest) -> Result<KmsKeyResponse, RpcError> {
        Err(RpcError::internal("not asked for"))
    }

    async fn get_app_env_encrypt_pub_key(&self, _: Caller, _: AppId) -> Result<PublicKeyResponse, RpcError> {
        Err(RpcError::internal("not asked for"))
    }

    async fn get_meta(&self, _: Caller, _: Empty) -> Result<GetMetaResponse, RpcError> {
        Err(RpcError::internal("not asked for"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kms_signs_and_its_connection_is_kept() {
    let kms = Kms::new(false);
    let url = kms.must_serve().await;
    let guest = kms.must_start_guest(&url, std::slice::from_ref(&url)).await;

    let first = guest.must_call("GetTlsKey", json!({"subject": "a", "alt_names": ["a.example"]})).await;
    guest.must_call("GetTlsKey", json!({"subject": "b"})).await;

    let chain = first["certificate_chain"].as_array().unwrap();
    assert_eq!(chain.len(), 3);
    let leaf = CertificateDer::from_pem_slice(chain[0].as_str().unwrap().as_bytes()).unwrap();
    let key = CertKey::from_pem(first["key"].as_str().unwrap()).unwrap();
    assert_eq!(RaTlsCertificate::parse(&leaf).unwrap().spki_der(), key.spki_der());
    assert_eq!(chain[2], kms.root.certificate_pem());
    // One to learn the root, one on the connection that is pinned to it.
    assert_eq!((kms.authorities_given.load(Ordering::SeqCst), kms.signed.load(Ordering::SeqCst)), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_signs_where_the_first_is_gone() {
    let kms = Kms::new(false);
    let gone = "https://127.0.0.1:9".to_owned();
    let live = kms.must_serve().await;
    let guest = kms.must_start_guest(&gone, &[gone.clone(), live]).await;

    guest.must_call("GetTlsKey", json!({})).await;

    assert_eq!(kms.signed.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_with_another_root_signs_nothing() {
    let (ours, theirs) = (Kms::new(false), Kms::new(false));
    let foreign = theirs.must_serve().await;
    let guest = ours.must_start_guest(&foreign, std::slice::from_ref(&foreign)).await;

    let refusal = guest.must_refuse("GetTlsKey", json!({})).await;

    assert!(refusal.contains("pins"), "{refusal}");
    assert_eq!(theirs.signed.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_key_is_refused() {
    let kms = Kms::new(true);
    let url = kms.must_serve().await;
    let guest = kms.must_start_guest(&url, std::slice::from_ref(&url)).await;

    assert!(guest.must_refuse("GetTlsKey", json!({})).await.contains("another key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_does_not_depend_on_a_kms_that_is_gone() {
    let kms = Kms::new(false);
    let gone = "https://127.0.0.1:9".to_owned();
    let guest = kms.must_start_guest(&gone, std::slice::from_ref(&gone)).await;

    let info = guest.must_call("Info", Value::Null).await;

    assert_eq!((&info["app_id"], &info["app_cert"]), (&Value::from(APP_ID), &Value::from("")));
    let pinned: Value = serde_json::from_str(info["key_provider_info"].as_str().unwrap()).unwrap();
    assert_eq!((&pinned["name"], &pinned["id"]), (&Value::from("kms"), &Value::from(hex::encode(kms.root.spki_der()))));
}
