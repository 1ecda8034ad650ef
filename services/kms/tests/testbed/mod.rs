//! A KMS on a free port beside a software TEE, and guests with genuine simulated quotes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "tests panic on purpose; not every test uses everything"
)]

pub mod machine;
pub mod program;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use dstack_api::kms::{Empty, KmsClient};
use dstack_attestation::Attestation;
use dstack_event_log::{RuntimeEvent, names};
use dstack_kms::{
    Server,
    config::{Admin, AttestationFile, ConfigFile, Danger, Onboard, Sealing, Settings, TeeConfig},
};
use dstack_manifest::{AppId, ComposeHash, InstanceId, VmConfig};
use dstack_ra_tls::{
    CertKey, CertificateAuthority, LeafProfile, Validity, ra_tls_report_data_with,
    tls::{self, Identity},
    usage,
};
use dstack_rpc::{Client, Endpoint};
use dstack_tee_simulator::{QuoteBody, QuotingEnclave, Vendor};
pub use dstack_testkit::software_td::{os_image_hash, vm_config};
use dstack_testkit::{
    software_td::{event, identity_events, quote_body},
    software_tee::{Running, SoftwareTee},
};

pub fn now() -> u64 {
    dstack_service::clock::unix_seconds()
}

/// Vendor, collateral service and the files of one KMS.
pub struct Stack {
    directory: tempfile::TempDir,
    pub vendor: Arc<Vendor>,
    pub collateral_url: String,
    _tee: SoftwareTee,
}

pub struct Kms {
    pub url: String,
    running: Running,
}

impl Kms {
    pub async fn stop(self) {
        self.running.stop().await;
    }

    /// A client without certificate that trusts whoever answers.
    pub fn anonymous(&self) -> Client {
        anonymous(&self.url)
    }

    pub async fn connect(&self, guest: &Guest) -> KmsClient<Client> {
        connect(&self.url, guest).await
    }
}

pub fn anonymous(url: &str) -> Client {
    Client::new(Endpoint::parse(url).unwrap()).with_tls(tls::danger_unverified_client().unwrap())
}

/// The way of a guest: temporary authority, certificate with evidence, connection pinned to the root.
pub async fn connect(url: &str, guest: &Guest) -> KmsClient<Client> {
    let answer = KmsClient(anonymous(url)).get_temp_ca_cert(&Empty {}).await.unwrap();
    let authority = CertificateAuthority::load(&answer.temp_ca_cert, CertKey::from_pem(&answer.temp_ca_key).unwrap()).unwrap();
    let identity = guest.identity(&authority);
    let config = tls::pinned_client(&der_of(&answer.ca_cert), usage::KMS_RPC, Some(&identity)).unwrap();
    KmsClient(Client::new(Endpoint::parse(url).unwrap()).with_tls(config))
}

/// [`connect`] with the nonce that the KMS offers: `choose` says which is in the certificate and which in the evidence.
pub async fn connect_with_nonce(
    url: &str,
    guest: &Guest,
    choose: impl FnOnce(Vec<u8>) -> (Option<Vec<u8>>, Option<Vec<u8>>),
) -> KmsClient<Client> {
    let answer = KmsClient(anonymous(url)).get_temp_ca_cert(&Empty {}).await.unwrap();
    let authority = CertificateAuthority::load(&answer.temp_ca_cert, CertKey::from_pem(&answer.temp_ca_key).unwrap()).unwrap();
    let (shown, bound) = choose(answer.nonce);
    let identity = guest.identity_with(&authority, shown, bound.as_deref(), Validity::starting(now(), 3600));
    let config = tls::pinned_client(&der_of(&answer.ca_cert), usage::KMS_RPC, Some(&identity)).unwrap();
    KmsClient(Client::new(Endpoint::parse(url).unwrap()).with_tls(config))
}

pub fn der_of(pem: &str) -> rustls_pki_types::CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

impl Stack {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tee = SoftwareTee::start(directory.path()).await;
        let stack = Self { directory, vendor: Arc::clone(&tee.vendor), collateral_url: tee.collateral_url.clone(), _tee: tee };
        stack.allow(&[&Guest::new(1)]);
        stack
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the allow list: these guests, their image, simulated evidence.
    pub fn allow(&self, guests: &[&Guest]) {
        let mut text = format!("version = 1\n[danger]\nallow_simulated = true\n[[os_images]]\nhash = \"{}\"\n", os_image_hash());
        for guest in guests {
            text.push_str(&format!(
                "[[apps]]\napp_id = \"{}\"\ncompose_hashes = [\"{}\"]\nany_device = true\n",
                guest.app_id, guest.compose_hash
            ));
        }
        self.write_allow_list(&text);
    }

    /// As [`Self::allow`], with machines of this measurement as KMS.
    pub fn allow_kms(&self, guests: &[&Guest], mr_aggregated: &str) {
        self.allow(guests);
        let text = std::fs::read_to_string(self.path("allow.toml")).unwrap();
        self.write_allow_list(&format!("{text}[kms]\nmr_aggregated = [\"{mr_aggregated}\"]\nany_device = true\n"));
    }

    pub fn write_allow_list(&self, text: &str) {
        dstack_service::fs::write_atomic(self.path("allow.toml"), text.as_bytes(), 0o644).unwrap();
    }

    pub fn settings(&self) -> ConfigFile {
        ConfigFile {
            listen: ([127, 0, 0, 1], 0).into(),
            cert_dir: self.path("kms"),
            domain: Some("kms.test".into()),
            allow_list: Some(self.path("allow.toml")),
            webhook: None,
            release_log: Default::default(),
            limits: Default::default(),
            collateral_url: self.collateral_url.clone(),
            ready_file: None,
            max_certificate_days: 90,
            app_domains: Vec::new(),
            max_verifications: 2,
            verified_cache_entries: 16,
            attestation: AttestationFile::default(),
            tee: TeeConfig::default(),
            sealing: Sealing::default(),
            onboard: Onboard::default(),
            admin: Admin::default(),
            danger: Danger { run_without_tee: true, simulated_root: Some(self.path("tee/root.pem")), ..Danger::default() },
        }
    }

    pub async fn kms(&self) -> Kms {
        self.kms_with(self.settings()).await
    }

    pub async fn kms_with(&self, file: ConfigFile) -> Kms {
        let server = Server::open(Settings::check(file, Path::new("kms.toml")).unwrap()).await.unwrap();
        let url = format!("https://{}/prpc", server.local_addr().unwrap());
        let running = Running::start(|stopped| async move { server.run(async { drop(stopped.await) }).await.unwrap() });
        Kms { url, running }
    }

    pub fn guest(&self, number: u8) -> Guest {
        Guest { vendor: Some(Arc::clone(&self.vendor)), ..Guest::new(number) }
    }
}

/// A guest in a software TD. Tests change single fields before it connects.
pub struct Guest {
    pub vendor: Option<Arc<Vendor>>,
    pub app_id: AppId,
    pub compose_hash: ComposeHash,
    pub instance_id: InstanceId,
    pub vm_config: VmConfig,
    /// Changes the TD report before it is quoted.
    pub tamper_body: fn(&mut QuoteBody),
    /// Changes the envelope after the quote.
    pub tamper_envelope: fn(&mut Attestation),
    /// Events after the identity.
    pub boot_done: bool,
    pub key: CertKey,
}

impl Guest {
    pub fn new(number: u8) -> Self {
        let app_id = AppId::new([number; 20]);
        Self {
            vendor: None,
            app_id,
            compose_hash: ComposeHash::new([number; 32]),
            instance_id: InstanceId::derive(&[number; 20], &app_id),
            vm_config: vm_config(),
            tamper_body: |_| (),
            tamper_envelope: |_| (),
            boot_done: true,
            key: CertKey::generate().unwrap(),
        }
    }

    pub fn vm_config_text(&self) -> String {
        serde_json::to_string(&self.vm_config).unwrap()
    }

    fn runtime_events(&self) -> Vec<RuntimeEvent> {
        let mut events = identity_events(&self.app_id, &self.compose_hash, &self.instance_id);
        if self.boot_done {
            events.push(event(names::BOOT_MR_DONE, b""));
        }
        events
    }

    /// Evidence that binds the key `spki`.
    pub fn attest(&self, spki: &[u8]) -> Attestation {
        self.attest_with(spki, None)
    }

    /// Evidence that binds the key `spki` and a nonce.
    fn attest_with(&self, spki: &[u8], nonce: Option<&[u8]>) -> Attestation {
        let runtime_events = self.runtime_events();
        let event_log: Vec<_> = runtime_events.iter().map(RuntimeEvent::to_event).collect();
        let mut body = quote_body(&self.compose_hash, &event_log, ra_tls_report_data_with(spki, nonce));
        (self.tamper_body)(&mut body);
        let vendor = self.vendor.as_ref().expect("a guest of a stack");
        let quote = QuotingEnclave::new(vendor).quote(&body);
        let config = serde_json::json!({ "vm_config": self.vm_config_text() }).to_string();
        let mut attestation = Attestation { quote, event_log, runtime_events, report_data: body.report_data, config };
        (self.tamper_envelope)(&mut attestation);
        attestation
    }

    /// Client certificate with evidence under the temporary authority.
    pub fn identity(&self, authority: &CertificateAuthority) -> Identity {
        self.identity_with(authority, None, None, Validity::starting(now(), 3600))
    }

    /// [`Self::identity`] that shows one nonce and binds another.
    pub fn identity_with(
        &self,
        authority: &CertificateAuthority,
        shown: Option<Vec<u8>>,
        bound: Option<&[u8]>,
        validity: Validity,
    ) -> Identity {
        let spki = self.key.spki_der();
        let envelope = self.attest_with(&spki, bound).stripped().encode();
        let profile = LeafProfile { nonce: shown, ..LeafProfile::guest_client(envelope) };
        let leaf = authority.issue_leaf(&spki, &profile, validity).unwrap();
        Identity { chain: vec![leaf], key: CertKey::from_pem(&self.key.to_pem()).unwrap() }
    }
}
