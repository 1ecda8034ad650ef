//! `dstack verify https://…` by somebody who knows only the address: where evidence is found, and who ends TLS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod software_app;

use std::{sync::Arc, time::SystemTime};

use axum::{Router, extract::RawQuery, http::StatusCode, response::IntoResponse as _, routing::get};
use dstack_attestation::Attestation;
use dstack_event_log::Event;
use dstack_ra_tls::{CaProfile, CertKey, CertificateAuthority, LeafProfile, Validity, ra_tls_report_data, tls};
use dstack_rpc::{Client, Endpoint, Listener, serve};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use software_app::{Lie, Run, World, reference_values};

const EVIDENCE: &str = "/.well-known/dstack/evidence";

/// An honest app, and somebody in front of it who speaks TLS.
struct Scene {
    world: World,
    agent: String,
    policy: String,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        let agent = world.app(Lie::None).await;
        let policy = world.simulated_policy(&reference_values()).to_str().unwrap().to_owned();
        Self { world, agent, policy }
    }

    /// The app's evidence over `report_data`.
    async fn evidence(&self, report_data: &[u8]) -> Value {
        let client = Client::new(Endpoint::parse(&self.agent).unwrap());
        let answer = client.get(&format!("{EVIDENCE}?nonce={}", hex::encode(report_data))).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// A route that passes challenges on to the app.
    fn relay(&self) -> Router {
        let agent = self.agent.clone();
        let relay = move |RawQuery(query): RawQuery| async move {
            let client = Client::new(Endpoint::parse(&agent).unwrap());
            client.get(&format!("{EVIDENCE}?{}", query.unwrap_or_default())).await.unwrap().body.into_response()
        };
        Router::new().route(EVIDENCE, get(relay))
    }

    /// A certificate for `key` that carries the app's evidence over `report_data`.
    async fn evidence_leaf(&self, key: &CertKey, report_data: [u8; 64]) -> tls::Identity {
        let evidence = self.evidence(&report_data).await;
        let event_log: Vec<Event> = serde_json::from_str(evidence["event_log"].as_str().unwrap()).unwrap();
        let attestation = Attestation {
            quote: hex::decode(evidence["quote"].as_str().unwrap()).unwrap(),
            runtime_events: event_log.iter().filter_map(Event::as_runtime).collect(),
            event_log,
            report_data,
            config: json!({ "vm_config": evidence["vm_config"] }).to_string(),
        };
        identity(key, Some(attestation.encode()))
    }

    async fn verify(&self, url: &str, more: &[&str]) -> Run {
        self.world.verify(&[&[url, "--config", &self.policy, "--allow-simulated", "--json"], more].concat()).await
    }
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::self_signed(CaProfile::KmsRoot, CertKey::generate().unwrap(), validity()).unwrap()
}

fn validity() -> Validity {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    Validity::starting(now, 3600)
}

fn identity(key: &CertKey, attestation: Option<Vec<u8>>) -> tls::Identity {
    let profile = LeafProfile {
        common_name: "app.example".to_owned(),
        subject_alt_names: vec!["127.0.0.1".to_owned()],
        attestation,
        server_auth: true,
        ..LeafProfile::default()
    };
    let leaf = authority().issue_leaf(&key.spki_der(), &profile, validity()).unwrap();
    tls::Identity { chain: vec![leaf], key: CertKey::from_pkcs8_der(&key.to_pkcs8_der()).unwrap() }
}

async fn serve_tls(identity: &tls::Identity, routes: Router) -> String {
    let config = Arc::new(tls::anonymous_server(identity).unwrap());
    let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, routes, std::future::pending()));
    url
}

async fn serve_plain(routes: Router) -> String {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, routes, std::future::pending()));
    url
}

fn verdict(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|_| panic!("no verdict: {}{}", run.out, run.err))
}

fn check<'a>(verdict: &'a Value, name: &str) -> &'a Value {
    let checks = verdict["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {verdict:#}"))
}

#[tokio::test]
async fn a_certificate_with_evidence_of_the_same_vm_binds_the_connection() {
    let scene = Scene::start().await;
    let key = CertKey::generate().unwrap();
    let identity = scene.evidence_leaf(&key, ra_tls_report_data(&key.spki_der())).await;
    let url = serve_tls(&identity, scene.relay()).await;

    let run = scene.verify(&url, &[]).await;

    let verdict = verdict(&run);
    assert_eq!(run.code, 0, "{}", run.out);
    assert_eq!(check(&verdict, "tls-key")["outcome"], "pass", "{verdict:#}");
    assert_eq!(check(&verdict, "report-data")["detail"], "a fresh random challenge");
    let anchors = verdict["trust_anchors"].as_array().unwrap();
    assert!(anchors.iter().any(|anchor| anchor["role"] == "TLS connection" && anchor["anchor"] == "the VM itself"), "{anchors:?}");
}

#[tokio::test]
async fn a_certificate_whose_evidence_binds_another_key_is_refused() {
    let scene = Scene::start().await;
    let (key, other) = (CertKey::generate().unwrap(), CertKey::generate().unwrap());
    let identity = scene.evidence_leaf(&key, ra_tls_report_data(&other.spki_der())).await;
    let url = serve_tls(&identity, scene.relay()).await;

    let run = scene.verify(&url, &[]).await;

    assert_eq!(run.code, 1, "{}", run.out);
    assert_eq!(check(&verdict(&run), "tls-key")["outcome"], "fail");
}

#[tokio::test]
async fn a_certificate_that_says_nothing_is_a_caveat() {
    let scene = Scene::start().await;
    let identity = identity(&CertKey::generate().unwrap(), None);
    let url = serve_tls(&identity, scene.relay()).await;

    let run = scene.verify(&url, &[]).await;

    let verdict = verdict(&run);
    assert_eq!((run.code, &check(&verdict, "tls-key")["outcome"]), (0, &"unknown".into()), "{}", run.out);
    let caveats = verdict["caveats"].to_string();
    assert!(caveats.contains("Nothing ties this TLS connection to the VM"), "{caveats}");
}

#[tokio::test]
async fn an_ingress_inside_the_vm_binds_its_certificate_by_checksums() {
    let scene = Scene::start().await;
    let identity = identity(&CertKey::generate().unwrap(), None);
    for (is_honest, outcome) in [(true, "pass"), (false, "fail")] {
        let pem = certificate_pem(&identity);
        let checksums = format!("{}  cert-127.0.0.1.pem\n", hex::encode(Sha256::digest(&pem)));
        let quoted = if is_honest { checksums.clone() } else { "something else".to_owned() };
        let quote = scene.evidence(&Sha256::digest(quoted)).await.to_string();
        let papers = [("quote.json", quote), ("sha256sum.txt", checksums), ("cert-127.0.0.1.pem", pem)];
        let routes = papers
            .into_iter()
            .fold(scene.relay(), |routes, (name, text)| routes.route(&format!("/evidences/{name}"), get(move || async move { text })));
        let url = serve_tls(&identity, routes).await;

        let run = scene.verify(&url, &[]).await;

        assert_eq!(check(&verdict(&run), "tls-key")["outcome"], outcome, "{}", run.out);
        assert_eq!(run.code, i32::from(!is_honest));
    }
}

#[tokio::test]
async fn evidence_of_the_references_agent_is_as_old_as_its_certificate() {
    let scene = Scene::start().await;
    let key = CertKey::generate().unwrap();
    let leaf = scene.evidence_leaf(&key, ra_tls_report_data(&key.spki_der())).await;
    let document = scene.evidence(&[1]).await["app_compose"].clone();
    let info = json!({
        "app_id": "00", "app_cert": certificate_pem(&leaf), "tcb_info": json!({ "app_compose": document }).to_string(), "vm_config": "",
    });
    let url = serve_plain(Router::new().route("/prpc/Info", get(move || async move { info.to_string() }))).await;

    let run = scene.verify(&url, &[]).await;
    let demanded = scene.verify(&url, &["--nonce", "0011"]).await;

    let verdict = verdict(&run);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_eq!(check(&verdict, "app-document")["outcome"], "pass");
    assert!(verdict["caveats"].to_string().contains("as old as its certificate"), "{verdict:#}");
    assert_eq!(demanded.code, 1, "it answers no challenge: {}", demanded.out);
}

/// A bundle of a visit through a gateway; the gateway's evidence is over `report_data`.
async fn gateway_bundle(scene: &Scene, key: &CertKey, report_data: &[u8]) -> Value {
    let identity = identity(key, None);
    let gateway = scene.evidence(report_data).await.to_string();
    let acme = json!({
        "account_uri": "https://ca.example/acct/1",
        "quoted_hist_keys": [{ "public_key": hex::encode(key.spki_der()), "quote": gateway, "attestation": "" }],
    });
    let mut bundle = scene.evidence(&[7; 32]).await;
    bundle["connection"] = json!({
        "origin": "https://app.example", "is_loopback": false, "certificates": certificate_pem(&identity), "objection": null,
        "gateway": { "origin": "https://gateway.example", "acme_info": acme.to_string(), "app_info": "", "collateral": null },
        "ingress": null,
    });
    bundle
}

#[tokio::test]
async fn a_gateway_is_judged_by_the_evidence_for_its_certificate() {
    let scene = Scene::start().await;
    let key = CertKey::generate().unwrap();
    let bound = Sha512::new().chain_update(b"zt-cert:").chain_update(key.spki_der()).finalize();
    for (report_data, code) in [(bound.as_slice(), 0), (&[3_u8; 64][..], 1)] {
        let bundle = scene.world.path("gateway.json");
        std::fs::write(&bundle, gateway_bundle(&scene, &key, report_data).await.to_string()).unwrap();

        let run = scene.verify(bundle.to_str().unwrap(), &["--nonce", &"07".repeat(32)]).await;

        let verdict = verdict(&run);
        assert_eq!(run.code, code, "{verdict:#}");
        assert_eq!(check(&verdict, "gateway-key")["outcome"], if code == 0 { "pass" } else { "fail" });
        if code == 0 {
            assert!(verdict["caveats"].to_string().contains("A gateway decrypts what you send"), "{verdict:#}");
        }
    }
}

#[tokio::test]
async fn a_bundle_remembers_the_connection() {
    let scene = Scene::start().await;
    let key = CertKey::generate().unwrap();
    let identity = scene.evidence_leaf(&key, ra_tls_report_data(&key.spki_der())).await;
    let url = serve_tls(&identity, scene.relay()).await;
    let saved = scene.world.path("bundle.json").to_str().unwrap().to_owned();
    let nonce = "5a".repeat(16);
    let live = scene.verify(&url, &["--save", &saved, "--nonce", &nonce]).await;
    assert_eq!(live.code, 0, "{}{}", live.out, live.err);

    let offline = scene.verify(&saved, &["--offline", "--nonce", &nonce]).await;

    assert_eq!(offline.code, 0, "{}{}", offline.out, offline.err);
    let (live, offline) = (verdict(&live), verdict(&offline));
    assert_eq!(check(&offline, "tls-key"), check(&live, "tls-key"));
    assert_eq!(offline["trust_anchors"], live["trust_anchors"]);
}

#[tokio::test]
async fn servers_without_evidence_leave_the_question_open() {
    let scene = Scene::start().await;
    let page = serve_plain(Router::new().fallback(|| async { "<!doctype html><title>shop</title>" })).await;
    let nothing = serve_plain(Router::new()).await;
    let endless = serve_plain(Router::new().fallback(|| async { vec![b'x'; 20 << 20] })).await;
    let angry = serve_plain(Router::new().fallback(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "no") })).await;

    for url in [page, nothing, endless, angry] {
        let run = scene.verify(&url, &[]).await;

        assert_eq!(run.code, 3, "{url}: {}{}", run.out, run.err);
    }
}

fn certificate_pem(identity: &tls::Identity) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let encoded = STANDARD.encode(identity.chain[0].as_ref());
    let lines: Vec<&str> = encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
