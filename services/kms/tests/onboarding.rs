//! A start without keys: the calls and the page, bootstrap with evidence, replication from a KMS that runs, and who may not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::path::Path;

use dstack_api::{
    RpcError,
    kms::{BootstrapRequest, Empty, GetAppKeyRequest, KmsClient, OnboardClient, OnboardRequest},
};
use dstack_attestation::{Attestation, Evidence, Policy, TrustAnchors, Verifier};
use dstack_kms::{
    Onboarded, OnboardingServer, Server,
    config::{ConfigFile, FirstStart, Settings},
};
use dstack_ra_tls::{EvidenceVerifier, VerificationLimits, collateral::CollateralClient};
use dstack_rpc::{Answer, Client, Endpoint};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use sha3::{Digest as _, Keccak256};
use testbed::{Guest, Kms, Stack, machine::Machine, now};
use tokio::task::JoinHandle;

/// A KMS that waits to be onboarded.
struct Waiting {
    url: String,
    run: JoinHandle<Onboarded>,
}

impl Waiting {
    async fn start(file: &ConfigFile) -> Self {
        let server = OnboardingServer::open(&settings(file)).await.unwrap().expect("there are no keys");
        let url = format!("http://{}", server.local_addr().unwrap());
        Self { url, run: tokio::spawn(server.run(std::future::pending())) }
    }

    fn http(&self) -> Client {
        Client::new(Endpoint::parse(&format!("{}/prpc", self.url)).unwrap())
    }

    fn calls(&self) -> OnboardClient<Client> {
        OnboardClient(self.http())
    }

    async fn post(&self, path: &str, origin: Option<&str>, body: &str) -> Answer {
        let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        self.http().request(Method::POST, path, headers, body.as_bytes().to_vec()).await.unwrap()
    }
}

fn settings(file: &ConfigFile) -> Settings {
    Settings::check(file.clone(), Path::new("kms.toml")).unwrap()
}

fn waiting(mut file: ConfigFile) -> ConfigFile {
    file.onboard.first_start = FirstStart::Wait;
    file.onboard.listen = ([127, 0, 0, 1], 0).into();
    file
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

/// Evidence as anybody verifies it who trusts the software TEE.
async fn verify(stack: &Stack, envelope: &[u8], report_data: [u8; 64]) -> Result<(), String> {
    let anchors = TrustAnchors::hardware().danger_simulated_root(stack.vendor.root_der().to_vec()).unwrap();
    let collateral = CollateralClient::new(&stack.collateral_url).unwrap();
    let verifier = EvidenceVerifier::new(Verifier::new(anchors, Policy::default()), collateral, VerificationLimits::default());
    verifier.of_envelope(envelope, &report_data, now()).await.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_over_rpc_gives_keys_with_evidence_over_them_and_happens_once() {
    let stack = Stack::start().await;
    let machine = stack.machine("one").await;
    stack.allow_kms(&[&Guest::new(1)], &machine.mr_aggregated);
    let file = waiting(stack.settings_on(&machine));
    let kms = Waiting::start(&file).await;

    let info = kms.calls().get_attestation_info(&Empty {}).await.unwrap();
    assert_eq!((hex::encode(&info.mr_aggregated), info.tee_variant.as_str()), (machine.mr_aggregated.clone(), "dstack-tdx"));
    assert_eq!((info.device_id.len(), info.ppid.len()), (32, 16));
    assert!(kms.calls().finish(&Empty {}).await.is_err(), "there is nothing to finish yet");
    let made = kms.calls().bootstrap(&BootstrapRequest { domain: "kms.chosen.test".into() }).await.unwrap();

    let mut report_data = [0; 64];
    let text = format!("dstack-kms-genereted-keys-v1:{};{};", hex::encode(&made.ca_pubkey), hex::encode(&made.k256_pubkey));
    report_data[..32].copy_from_slice(&Keccak256::digest(text));
    verify(&stack, &made.attestation, report_data).await.unwrap();
    assert!(verify(&stack, &made.attestation, [0; 64]).await.is_err());
    let again = kms.calls().bootstrap(&BootstrapRequest { domain: "kms.chosen.test".into() }).await.unwrap_err();
    assert_eq!(again.message, "KMS has already been bootstrapped");

    kms.calls().finish(&Empty {}).await.unwrap();
    assert_eq!(kms.run.await.unwrap(), Onboarded::Finished);
    let file = ConfigFile { domain: None, ..file };
    let running = stack.kms_with(file).await;
    let meta = KmsClient(running.anonymous()).get_meta(&Empty {}).await.unwrap();
    assert_eq!(meta.bootstrap_info.unwrap(), made);
    let domain = std::fs::read_to_string(stack.path("one-kms/rpc-domain")).unwrap();
    assert_eq!(domain, "kms.chosen.test", "the name that was chosen is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_the_policy_does_not_accept_as_a_kms_gets_no_keys() {
    let stack = Stack::start().await;
    let machine = stack.machine("one").await;
    stack.allow_kms(&[], &"11".repeat(32));
    let kms = Waiting::start(&waiting(stack.settings_on(&machine))).await;

    let error = kms.calls().bootstrap(&BootstrapRequest { domain: "kms.test".into() }).await.unwrap_err();

    assert_eq!(error.code, "kms/kms-measurement-not-allowed");
    assert!(error.message.starts_with("KMS self authorization failed: KMS is not allowed: "), "{error}");
    assert!(!stack.path("one-kms").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_are_refused() {
    let stack = Stack::start().await;
    let kms = Waiting::start(&waiting(stack.settings())).await;
    for domain in ["", "a_b", "*.test", "-a"] {
        let error = kms.calls().bootstrap(&BootstrapRequest { domain: domain.into() }).await.unwrap_err();

        assert_eq!(error.code, "kms/domain", "{domain}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_no_keys_to_a_finished_onboarding() {
    let stack = Stack::start().await;
    let kms = Waiting::start(&waiting(stack.settings())).await;
    let page = kms.http().get("/").await.unwrap();
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(text(&page).contains("Make new root keys") && text(&page).contains("No TEE protects this KMS"));
    assert_eq!(text(&kms.http().get("/health").await.unwrap()), "OK");

    let failed = kms.post("/bootstrap", None, "domain=a_b").await;
    assert_eq!(failed.status, StatusCode::BAD_REQUEST);
    assert!(text(&failed).contains("kms/domain"));
    let foreign = kms.post("/bootstrap", Some("http://evil.example"), "domain=kms.test").await;
    assert!(text(&foreign).contains("kms/foreign-origin") && !stack.path("kms").exists());

    let made = kms.post("/bootstrap", None, "domain=kms.test").await;
    assert!(text(&made).contains("k256 public key") && text(&made).contains("Finish and serve"), "{}", text(&made));
    let finished = kms.post("/done", None, "").await;
    assert!(text(&finished).contains("Finished."));
    assert_eq!(kms.run.await.unwrap(), Onboarded::Finished);
    assert!(OnboardingServer::open(&settings(&waiting(stack.settings()))).await.unwrap().is_none(), "it happens once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_demanded_where_one_is_configured() {
    let stack = Stack::start().await;
    std::fs::write(stack.path("token"), "0123456789abcdef0123").unwrap();
    let mut file = waiting(stack.settings());
    file.onboard.token_file = Some(stack.path("token"));
    let kms = Waiting::start(&file).await;
    let request = BootstrapRequest { domain: "kms.test".into() };

    assert_eq!(kms.calls().bootstrap(&request).await.unwrap_err().code, "kms/token");
    assert_eq!(kms.http().get("/finish").await.unwrap().status, StatusCode::UNAUTHORIZED);
    assert!(text(&kms.post("/bootstrap", None, "domain=kms.test&token=wrong").await).contains("kms/token"));
    assert!(!stack.path("kms").exists());

    OnboardClient(kms.http().with_bearer("0123456789abcdef0123")).bootstrap(&request).await.unwrap();
    assert_eq!(kms.http().get("/health").await.unwrap().status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nothing_starts_unless_the_configuration_says_how() {
    let stack = Stack::start().await;
    for first_start in [FirstStart::Wait, FirstStart::Refuse] {
        let mut file = stack.settings();
        file.onboard.first_start = first_start;

        let error = Server::open(settings(&file)).await.err().unwrap();

        assert_eq!(dstack_api::UserFacing::code(&error), "kms/no-keys");
        assert!(!stack.path("kms").exists());
    }
}

/// A running KMS on a machine of its own, and its stack's policy.
async fn source(stack: &Stack) -> (Machine, Kms) {
    let machine = stack.machine("source").await;
    stack.allow_kms(&[&Guest::new(1)], &machine.mr_aggregated);
    let kms = stack.kms_with(stack.settings_on(&machine)).await;
    (machine, kms)
}

async fn onboard(kms: &Waiting, source_url: &str) -> Result<Vec<u8>, RpcError> {
    let request = OnboardRequest { source_url: source_url.into(), domain: "replica.test".into() };
    kms.calls().onboard(&request).await.map(|answer| answer.k256_pubkey)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_releases_the_same_keys() {
    let stack = Stack::start().await;
    let (_machine, first) = source(&stack).await;
    let other = stack.machine("replica").await;
    let file = waiting(stack.settings_on(&other));
    let replica = Waiting::start(&file).await;

    let k256_pubkey = onboard(&replica, first.url.trim_end_matches("/prpc")).await.unwrap();

    assert_eq!(onboard(&replica, &first.url).await.unwrap_err().message, "KMS has already been onboarded");
    replica.calls().finish(&Empty {}).await.unwrap();
    replica.run.await.unwrap();
    let second = stack.kms_with(file).await;
    let meta = KmsClient(second.anonymous()).get_meta(&Empty {}).await.unwrap();
    assert_eq!(meta.k256_pubkey, k256_pubkey);
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    let (one, two) = (first.connect(&stack.guest(1)).await, second.connect(&stack.guest(1)).await);
    let (mut one, mut two) = (one.get_app_key(&request).await.unwrap(), two.get_app_key(&request).await.unwrap());
    // The root certificate is signed anew with the same key, and each replica has a log of its own.
    for keys in [&mut one, &mut two] {
        (keys.ca_cert, keys.release_proof) = (String::new(), String::new());
    }
    assert_eq!(one, two);
    let sealed = std::fs::read(stack.path("replica-kms/root-k256.key")).unwrap();
    assert!(sealed.starts_with(b"DSTKSEAL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_no_allowed_kms_of_the_replica_is_refused() {
    let stack = Stack::start().await;
    let (machine, first) = source(&stack).await;
    let other = stack.machine("replica").await;
    let mut file = waiting(stack.settings_on(&other));
    let other_list = stack.path("other.toml");
    file.allow_list = Some(other_list.clone());
    let list = std::fs::read_to_string(stack.path("allow.toml")).unwrap();
    std::fs::write(&other_list, &list).unwrap();
    let replica = Waiting::start(&file).await;

    // The source denies the replica.
    stack.allow(&[&Guest::new(1)]);
    let denied = onboard(&replica, &first.url).await.unwrap_err();
    assert_eq!(denied.code, "kms/source-refuses");
    assert!(denied.message.contains(&machine.mr_aggregated), "{denied}");

    // Nobody there, no KMS there.
    assert_eq!(onboard(&replica, "https://127.0.0.1:1").await.unwrap_err().code, "kms/source-refuses");
    assert_eq!(onboard(&replica, "nonsense").await.unwrap_err().code, "kms/source-address");
    assert!(!stack.path("replica-kms").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_evidence_gets_no_connection() {
    let stack = Stack::start().await;
    let without = stack.kms().await;
    let other = stack.machine("replica").await;
    stack.allow_kms(&[], &other.mr_aggregated);
    let replica = Waiting::start(&waiting(stack.settings_on(&other))).await;

    let error = onboard(&replica, &without.url).await.unwrap_err();

    assert_eq!(error.code, "kms/source-refuses");
    assert!(error.message.contains("TLS"), "{error}");
    assert!(!stack.path("replica-kms").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_in_an_envelope_is_bound_to_its_report_data() {
    let stack = Stack::start().await;
    let guest = stack.guest(1);
    let attestation: Attestation = guest.attest(&guest.key.spki_der());
    let report_data = attestation.report_data;
    let evidence = Evidence::from(attestation.clone());
    assert_eq!(evidence.report_data, Some(report_data));

    assert!(verify(&stack, &attestation.encode(), report_data).await.is_ok());
    let mut other = report_data;
    other[0] ^= 1;
    assert!(verify(&stack, &attestation.encode(), other).await.is_err());
    assert!(verify(&stack, b"nonsense", report_data).await.is_err());
}
