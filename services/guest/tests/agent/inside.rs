//! Containers.

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
};

use dstack_attestation::UnverifiedQuote;
use dstack_key_hierarchy::recover;
use dstack_ra_tls::{Extension, RaTlsCertificate, ra_tls_report_data, usage};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::fixture::{APP_ID, Guest, PUBLISHED_KEYS, Setup, replay_digests};

fn must_leaf(answer: &Value) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(answer["certificate_chain"][0].as_str().unwrap().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_those_of_the_published_vectors() {
    let guest = Guest::must_start().await;
    let vectors = [
        ("", "aa221ae548b5a8f52fcb8687cfd873712f6a1232b2717e5ee3d58ab74f21905b"),
        ("test", "133e8ca6e532ead3e38f00347408771da296e9c70e8e3e362f485154e64ef4e8"),
        ("vms", "1091a4d6721f6a719ca57320e4975f7e237649131111ee1c5032f661dc1cfef2"),
    ];

    for (path, key) in vectors {
        for algorithm in ["", "k256", "secp256k1", "ed25519"] {
            let answer = guest.must_call("GetKey", json!({"path": path, "algorithm": algorithm})).await;
            assert_eq!(answer["key"], key, "{path} {algorithm}");
            assert_eq!(answer["signature_chain"].as_array().unwrap().len(), 2);
        }
    }
    let answer = guest.must_call("GetKey", json!({"path": "test", "purpose": "signing"})).await;
    assert_eq!(
        answer["signature_chain"][0],
        "c2ac442934a10d730c14b553e6b93e4db61aa7afa48b7aa51e649841115d6f4160a29b24a87e0ef4c02e37c10b176913f1449ebb41466fccdc44a6ef5d9b247300"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signature_chain_leads_to_the_kms() {
    let guest = Guest::must_start().await;
    let answer = guest.must_call("GetKey", json!({"path": "x", "purpose": "p"})).await;
    let app_key = hex::decode("02818494263695e8839122dbd88e281d7380622999df4e60a14befa0f2d096fc7c").unwrap();

    let signature = hex::decode(answer["signature_chain"][1].as_str().unwrap()).unwrap();
    let digest = dstack_key_hierarchy::app_key_digest(&APP_ID.parse().unwrap(), &app_key.try_into().unwrap());

    let kms = recover(&digest, &signature).unwrap();
    assert_eq!(hex::encode(kms), "0321529e458424ab1f710a3a57ec4dad2fb195ddca572f7469242ba6c7563085b6");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_algorithms_give_no_key() {
    let guest = Guest::must_start().await;

    for algorithm in ["secp256k1_prehashed", "rsa", "SECP256K1"] {
        assert_eq!(guest.must_refuse("GetKey", json!({"algorithm": algorithm})).await, "Unsupported algorithm");
    }
    guest.must_refuse("GetKey", json!({"path": "x".repeat(65_537)})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_keys_are_fresh_and_carry_what_was_asked_for() {
    let guest = Guest::must_start().await;
    let request = json!({
        "subject": "my.app", "alt_names": ["my.app", "10.0.0.1"], "usage_ra_tls": true, "usage_server_auth": true,
        "with_app_info": true, "not_before": 1_700_000_000_u64, "not_after": 1_900_000_000_u64,
    });

    let first = guest.must_call("GetTlsKey", request.clone()).await;
    let second = guest.must_call("GetTlsKey", request).await;

    assert!(first["key"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_ne!(first["key"], second["key"]);
    let der = must_leaf(&first);
    let leaf = RaTlsCertificate::parse(&der).unwrap();
    let key = dstack_ra_tls::CertKey::from_pem(first["key"].as_str().unwrap()).unwrap();
    assert_eq!(leaf.spki_der(), key.spki_der());
    assert_eq!(leaf.usage(), Some(usage::APP_CUSTOM));
    assert_eq!(leaf.app_id().unwrap().to_string(), APP_ID);
    assert_eq!(leaf.not_after(), 1_900_000_000);
    let app_info = leaf.app_info().unwrap();
    assert_eq!(app_info.compose_hash.as_slice(), guest.compose.compose_hash().as_bytes());
    assert_eq!(app_info.key_provider_info.as_slice(), br#"{"name":"none","id":""}"#);
    let evidence = leaf.evidence().unwrap().unwrap();
    assert_eq!(UnverifiedQuote::parse(&evidence.quote).unwrap().fields().report_data, ra_tls_report_data(leaf.spki_der()));
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 2);
    let authority = CertificateDer::from_pem_slice(first["certificate_chain"][1].as_str().unwrap().as_bytes()).unwrap();
    let (_, authority) = x509_parser::parse_x509_certificate(&authority).unwrap();
    assert_eq!(certificate.issuer(), authority.subject());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_earlier_epochs_can_be_asked_for() {
    let mut keys: Value = serde_json::from_str(PUBLISHED_KEYS).unwrap();
    keys["epoch"] = json!(3);
    keys["older_epochs"] = json!([{"epoch": 2, "k256_key": "11".repeat(32), "k256_signature": "22".repeat(65)}]);
    let guest = Guest::start(Setup { keys: keys.to_string(), ..Setup::default() }).await.unwrap();

    let current = guest.must_call("GetKey", json!({"path": "x"})).await;
    let older = guest.must_call("GetKey", json!({"path": "x", "epoch": 2})).await;

    assert_eq!((&current["epoch"], &current["readable_epochs"]), (&json!(3), &json!([2, 3])));
    assert_eq!(guest.must_call("GetKey", json!({"path": "x", "epoch": 3})).await, current);
    assert_eq!(older["epoch"], json!(2));
    assert_ne!(older["key"], current["key"]);
    assert_eq!(older["signature_chain"][1], json!("22".repeat(65)));
    assert!(guest.must_refuse("GetKey", json!({"path": "x", "epoch": 1})).await.contains("no key of this epoch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_without_epochs_hear_nothing_of_them() {
    let guest = Guest::must_start().await;

    let answer = guest.must_call("GetKey", json!({"path": "x"})).await;

    assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
    guest.must_refuse("GetKey", json!({"path": "x", "epoch": 1})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_tls_key_shows_no_evidence() {
    let guest = Guest::must_start().await;

    let answer = guest.must_call("GetTlsKey", json!({})).await;

    let leaf = RaTlsCertificate::parse(&must_leaf(&answer)).unwrap();
    assert!(leaf.payload(Extension::Attestation).is_none() && leaf.app_info().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senseless_certificates_are_refused() {
    let guest = Guest::must_start().await;

    let order = guest.must_refuse("GetTlsKey", json!({"not_before": 2_000_000_000_u64, "not_after": 2_000_000_000_u64})).await;
    assert_eq!(order, "not_before must be earlier than not_after");
    guest.must_refuse("GetTlsKey", json!({"not_after": u64::MAX})).await;
    guest.must_refuse("GetTlsKey", json!({"subject": "x".repeat(254)})).await;
    guest.must_refuse("GetTlsKey", json!({"alt_names": vec!["a"; 65]})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotes_hold_the_padded_report_data_and_their_log_replays() {
    let guest = Guest::must_start().await;

    let answer = guest.must_call("GetQuote", json!({"report_data": "0xABcd"})).await;

    let bytes = hex::decode(answer["quote"].as_str().unwrap()).unwrap();
    let quote = UnverifiedQuote::parse(&bytes).unwrap();
    let expected = format!("abcd{}", "00".repeat(62));
    assert_eq!(answer["report_data"], expected.as_str());
    assert_eq!(hex::encode(&bytes[568..632]), expected);
    let log = answer["event_log"].as_str().unwrap();
    assert_eq!(replay_digests(log), quote.fields().rtmr);
    assert!(log.contains("\"event\":\"system-ready\""));
    assert!(answer["vm_config"].as_str().unwrap().contains("cpu_count"));
    assert!(answer.get("attestation").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_report_data_is_refused() {
    let guest = Guest::must_start().await;

    assert!(guest.must_refuse("GetQuote", json!({"report_data": "00".repeat(65)})).await.starts_with("Report data is too long"));
    guest.must_call("GetQuote", json!({"report_data": "ff".repeat(64)})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn info_names_application_and_measurements() {
    let guest = Guest::must_start().await;

    let info = guest.must_call("Info", Value::Null).await;

    assert_eq!(info["app_id"], APP_ID);
    assert_eq!(info["instance_id"].as_str().unwrap().len(), 40);
    assert_eq!(info["app_name"], "hello <b>");
    assert_eq!(info["key_provider_info"], r#"{"name":"none","id":""}"#);
    assert_eq!(info["os_image_hash"], "55".repeat(32));
    assert!(info["app_cert"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let tcb: Value = serde_json::from_str(info["tcb_info"].as_str().unwrap()).unwrap();
    for register in ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"] {
        assert_eq!(tcb[register].as_str().unwrap().len(), 96, "{register}");
    }
    assert_eq!(tcb["app_compose"].as_str().unwrap().as_bytes(), guest.compose.raw());
    assert_eq!(tcb["compose_hash"], guest.compose.compose_hash().to_string());
    assert_eq!(tcb["compose_hash"], info["compose_hash"]);
    assert_eq!(tcb["mr_aggregated"], info["mr_aggregated"]);
    assert_eq!(tcb["device_id"], info["device_id"]);
    let replayed = replay_digests(&tcb["event_log"].to_string());
    assert_eq!(tcb["rtmr3"], hex::encode(replayed.0[3]));
    assert_eq!(tcb["rtmr0"], hex::encode(replayed.0[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emitted_event_is_in_log_and_register() {
    for version in [1, 2] {
        let mut setup = Setup::default();
        setup.document.event_log_version = version;
        let guest = Guest::start(setup).await.unwrap();

        let answer = guest.must_call("EmitEvent", json!({"event": "my-event", "payload": "c0ffee"})).await;

        assert_eq!(answer, Value::Null);
        let quoted = guest.must_call("GetQuote", json!({})).await;
        let quote = UnverifiedQuote::parse(&hex::decode(quoted["quote"].as_str().unwrap()).unwrap()).unwrap();
        let log = quoted["event_log"].as_str().unwrap();
        assert_eq!(replay_digests(log), quote.fields().rtmr);
        let events: Value = serde_json::from_str(log).unwrap();
        let last = events.as_array().unwrap().last().unwrap();
        assert_eq!((&last["event"], &last["event_payload"], &last["imr"]), (&json!("my-event"), &json!("c0ffee"), &json!(3)));
        assert_eq!(last["version"].as_u64(), (version == 2).then_some(2));
        // Info follows the register.
        let info = guest.must_call("Info", Value::Null).await;
        let tcb: Value = serde_json::from_str(info["tcb_info"].as_str().unwrap()).unwrap();
        assert_eq!(tcb["rtmr3"], hex::encode(quote.fields().rtmr.0[3]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_could_pass_for_the_boots_are_refused() {
    let guest = Guest::must_start().await;

    for name in ["", "app-id", "system-ready", "key-provider", "os-image-hash", "a:b"] {
        guest.must_refuse("EmitEvent", json!({"event": name, "payload": "00"})).await;
    }
    guest.must_refuse("EmitEvent", json!({"event": "x".repeat(257)})).await;
    guest.must_refuse("EmitEvent", json!({"event": "x", "payload": "00".repeat(65_537)})).await;

    let quoted = guest.must_call("GetQuote", json!({})).await;
    assert!(quoted["event_log"].as_str().unwrap().contains("system-ready\",\"event_payload\":\"\"}]"), "nothing was added");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_takes_no_more_events_and_still_proves_itself() {
    let guest = Guest::must_start().await;
    let payload = "00".repeat(65_536);

    let mut emitted = 0;
    while guest.call("EmitEvent", json!({"event": "big", "payload": payload})).await.0 == 200 {
        emitted += 1;
        assert!(emitted < 100, "there is an end");
    }

    assert!(guest.must_refuse("EmitEvent", json!({"event": "big", "payload": payload})).await.contains("full"));
    let quoted = guest.must_call("GetQuote", json!({})).await;
    assert!(dstack_event_log::EventLog::parse_json(quoted["event_log"].as_str().unwrap()).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_measures_nothing_before_the_system_is_ready() {
    let guest = Guest::start(Setup { is_ready: false, ..Setup::default() }).await.unwrap();

    assert!(guest.must_refuse("EmitEvent", json!({"event": "early"})).await.contains("not ready"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotes_and_events_at_the_same_time_agree() {
    let guest = std::sync::Arc::new(Guest::must_start().await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let guest = std::sync::Arc::clone(&guest);
        tasks.spawn(async move {
            if number % 2 == 0 {
                guest.must_call("EmitEvent", json!({"event": format!("e{number}")})).await;
                return;
            }
            let quoted = guest.must_call("GetQuote", json!({})).await;
            let quote = UnverifiedQuote::parse(&hex::decode(quoted["quote"].as_str().unwrap()).unwrap()).unwrap();
            assert_eq!(replay_digests(quoted["event_log"].as_str().unwrap()), quote.fields().rtmr);
        });
    }

    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_is_told() {
    let guest = Guest::must_start().await;

    let version = guest.must_call("Version", Value::Null).await;

    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["rev"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_says_so() {
    let guest = Guest::must_start().await;

    for method in ["Attest", "Sign", "Verify", "GpuInfo", "Nonsense", "prpc/Tappd.RawQuote", "a/b/c"] {
        assert!(guest.must_refuse(method, json!({})).await.starts_with("Service not found"), "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused() {
    let guest = Guest::must_start().await;

    for body in
        [json!({"report_data": "xyz"}), json!({"report_data": "abc"}), json!({"report_data": null}), json!({"report_data": 1}), json!([1])]
    {
        guest.must_refuse("GetQuote", body).await;
    }
    assert_eq!(guest.must_call("GetKey", json!({"unknown_field": [1, 2]})).await["key"].as_str().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_socket_is_open_to_all_users_and_takes_the_clients_that_exist() {
    let guest = Guest::must_start().await;

    for path in guest.config().sockets {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        // As the Rust client writes it: absolute target, content type twice.
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            let head = "POST http://unix.socket/GetKey HTTP/1.1\r\nhost: unix.socket\r\ncontent-type: application/json\r\n\
                        content-type: application/json\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{\"path\":\"test\"}";
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("content-length:"), "{answer}");
        assert!(answer.contains("133e8ca6e532ead3e38f00347408771da296e9c70e8e3e362f485154e64ef4e8"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_over_another_document_than_the_measured_one_does_not_start() {
    let other =
        dstack_manifest::AppCompose::from_document(dstack_manifest::AppComposeDocument::for_docker_compose("evil", "services: {}\n"))
            .unwrap();

    let refused = Guest::start(Setup { other_compose: Some(other.raw().to_vec()), ..Setup::default() }).await.err().unwrap();

    assert_eq!(dstack_api::UserFacing::code(&refused), "agent/not-measured");
}
