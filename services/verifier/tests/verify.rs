//! Requests over HTTP: genuine and simulated evidence, evidence with one thing wrong, and requests that are none.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use std::io::Write as _;

use http::StatusCode;
use serde_json::{Value, json};
use testbed::{Bed, GENUINE_NOW, Image, NOW, Service, Web, genuine, genuine_collateral, outcome, settings};

const REPORT_DATA: [u8; 64] = [0x77; 64];

async fn genuine_service(dir: &std::path::Path, images: Option<&Web>) -> (Service, Web) {
    let pccs = Web::pccs(genuine_collateral()).await;
    (Service::start(settings(dir, &pccs, images), GENUINE_NOW).await, pccs)
}

#[tokio::test]
async fn genuine_evidence_with_its_document_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let (service, pccs) = genuine_service(dir.path(), None).await;
    let request = genuine("tdx-lite-getquote.json");

    let answer = service.verify(&request).await;

    assert!(answer.is_valid && answer.reason.is_none(), "{answer:#?}");
    assert_eq!(answer.verdict, "VERIFIED WITH CAVEATS");
    let details = &answer.details;
    assert!(details.quote_verified && details.event_log_verified && details.os_image_hash_verified && details.acpi_tables_verified);
    assert_eq!((details.tee_variant.as_deref(), details.tcb_status.as_deref()), (Some("dstack-tdx"), Some("UpToDate")));
    let sent: Value = serde_json::from_str(&request).unwrap();
    assert_eq!(details.report_data.as_deref(), sent["report_data"].as_str());
    let (app, boot) = (details.app_info.as_ref().unwrap(), details.boot_info.as_ref().unwrap());
    assert!(app.mr_system.starts_with("118f754a") && app.mr_system.ends_with("8f70"), "{app:?}");
    assert!(app.mr_aggregated.starts_with("c758fa62") && app.mr_aggregated.ends_with("d2ee"), "{app:?}");
    assert_eq!(app.os_image_hash, "e6f5cfec20c02e7b97baa213d0f718020b55e040172d90ccbcb946d56c8b09db");
    assert_eq!((&boot.mr_aggregated, &boot.app_id, boot.tcb_status.as_str()), (&app.mr_aggregated, &app.app_id, "UpToDate"));
    assert_eq!(details.key_provider.as_ref().unwrap().name, "kms");
    assert!(answer.trust_anchors.iter().any(|anchor| anchor.anchor == "Intel SGX Root CA" && anchor.origin == "built into this program"));

    service.verify(&request).await;
    assert_eq!(pccs.requests(), 4, "collateral is fetched once");
}

#[tokio::test]
async fn genuine_evidence_of_an_image_nobody_has_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let images = Web::file(None).await;
    let (service, _pccs) = genuine_service(dir.path(), Some(&images)).await;

    let answer = service.verify(genuine("quote-report.json")).await;

    assert!(!answer.is_valid);
    let details = &answer.details;
    assert!(details.quote_verified && details.event_log_verified && !details.os_image_hash_verified, "{answer:#?}");
    assert!(answer.reason.as_ref().unwrap().starts_with("os-image: os image 14ad42d0"), "{:?}", answer.reason);
    assert_eq!(outcome(&answer, "os-image"), "unknown");
    let app = details.app_info.as_ref().unwrap();
    assert!(app.mr_system.starts_with("e1ae776a") && app.mr_aggregated.starts_with("233c659f"), "{app:?}");
    assert_eq!(app.os_image_hash, "");
    assert_eq!(images.requests(), 1);
}

#[tokio::test]
async fn one_wrong_thing_fails_its_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _pccs) = genuine_service(dir.path(), None).await;
    let request: Value = serde_json::from_str(&genuine("tdx-lite-getquote.json")).unwrap();
    let text = |field: &str| request[field].as_str().unwrap().to_owned();
    let flipped = |at: usize| {
        let mut quote = hex::decode(text("quote")).unwrap();
        quote[at] ^= 1;
        hex::encode(quote)
    };
    let rd = text("report_data");
    let other_rd = format!("{}{}", if rd.starts_with('0') { '1' } else { '0' }, &rd[1..]);
    let log = text("event_log");
    let renamed = log.replacen("\"app-id\"", "\"app-ix\"", 1);
    let config = text("vm_config");
    let cases = [
        ("quote", flipped(48 + 200), "quote-signature"),
        ("quote", flipped(48 + 584 + 4 + 10), "quote-signature"),
        ("quote", text("quote")[..400].to_owned(), "quote-format"),
        ("event_log", renamed, "runtime-log"),
        ("report_data", other_rd, "report-data"),
        (
            "vm_config",
            config.replacen("\"cpu_count\":2", "\"cpu_count\":2,\"memory_size\":4294967296", 1).replacen(
                "\"memory_size\":2147483648",
                "\"x\":0",
                1,
            ),
            "os-image",
        ),
    ];
    for (field, value, check) in cases {
        let mut changed = request.clone();
        assert_ne!(changed[field], Value::from(value.clone()), "{field} is changed");
        changed[field] = value.into();

        let answer = service.verify(&changed).await;

        assert!(!answer.is_valid, "{field} {check}: {answer:#?}");
        assert_eq!((answer.verdict.as_str(), outcome(&answer, check)), ("NOT VERIFIED", "fail"), "{field}: {answer:#?}");
        assert!(answer.reason.is_some() && !answer.fix.is_empty(), "{field} {check}");
    }
    let mut alone = request.clone();
    alone["event_log"] = "[]".into();
    let answer = service.verify(&alone).await;
    assert!(!answer.is_valid && answer.details.quote_verified && !answer.details.event_log_verified, "{answer:#?}");
    assert!(answer.reason.as_ref().unwrap().starts_with("runtime-log: "), "a quote alone says nothing about software: {:?}", answer.reason);
}

#[tokio::test]
async fn simulated_evidence_says_so_and_is_nothing_without_the_danger_table() {
    let bed = Bed::new();
    let (pccs, image) = (Web::pccs(bed.collateral()).await, Image::documented());
    let request = bed.request(&image, REPORT_DATA);
    let believing = Service::start(bed.settings(&pccs, None), NOW).await;

    let answer = believing.verify(&request).await;
    assert!(answer.is_valid && answer.details.acpi_tables_verified, "{answer:#?}");
    assert_eq!(answer.verdict, "SIMULATED");
    assert!(answer.trust_anchors.iter().any(|anchor| anchor.anchor.starts_with("SIMULATED root")), "{:?}", answer.trust_anchors);

    let asked = pccs.requests();
    let strict = Service::start(settings(bed.dir.path(), &pccs, None), NOW).await;
    let answer = strict.verify(&request).await;
    assert_eq!((answer.is_valid, answer.verdict.as_str(), outcome(&answer, "quote-signature")), (false, "NOT VERIFIED", "fail"));
    assert_eq!(pccs.requests(), asked, "nothing is fetched for a root that is not trusted");
}

#[tokio::test]
async fn an_image_without_document_is_fetched_once_and_measured() {
    let bed = Bed::new();
    let image = Image::archived();
    let (pccs, images) = (Web::pccs(bed.collateral()).await, Web::file(Some(image.archive.clone())).await);
    let service = Service::start(bed.settings(&pccs, Some(&images)), NOW).await;

    for _ in 0..2 {
        let answer = service.verify(bed.request(&image, REPORT_DATA)).await;
        assert!(answer.is_valid, "{answer:#?}");
        let details = &answer.details;
        assert_eq!((details.os_image_version.as_deref(), details.os_image_is_dev), (Some("0.5.5"), Some(true)));
        assert_eq!(details.app_info.as_ref().unwrap().os_image_hash, image.hash.to_string());
    }
    assert_eq!(images.requests(), 1);

    let other = bed.request_with(&image, REPORT_DATA, |body| body.rtmr[1][0] ^= 1);
    let answer = service.verify(other).await;
    assert_eq!((answer.is_valid, outcome(&answer, "os-image")), (false, "fail"), "{answer:#?}");
    let forged = bed.request_with(&image, REPORT_DATA, |body| body.rtmr[3][0] ^= 1);
    let mut forged = forged;
    forged["vm_config"] = forged["vm_config"].as_str().unwrap().replace(&image.hash.to_string(), &"ab".repeat(32)).into();
    assert_eq!(outcome(&service.verify(forged).await, "runtime-log"), "fail");
    assert_eq!(images.requests(), 1, "no image is fetched for evidence that does not hold");
}

#[tokio::test]
async fn debug_names_the_event_that_differs() {
    let bed = Bed::new();
    let pccs = Web::pccs(bed.collateral()).await;
    let service = Service::start(bed.settings(&pccs, None), NOW).await;
    let mut request = bed.request_with(&Image::documented(), REPORT_DATA, |body| body.rtmr[1][0] ^= 1);
    let quiet = service.verify(&request).await;
    assert!(quiet.details.rtmr_debug.is_none() && quiet.details.acpi_tables.is_none());

    request["debug"] = true.into();
    let details = service.verify(&request).await.details;

    let [register] = details.rtmr_debug.as_deref().unwrap() else { panic!("{:?}", details.rtmr_debug) };
    assert_eq!((register.rtmr.as_str(), register.events.len()), ("RTMR1", 0), "the log is stripped");
    assert_ne!(register.expected, register.actual);
    assert!(register.missing_expected_digests.len() >= 5 && details.acpi_tables.unwrap().rsdp.starts_with("52534420505452"));

    let mut genuine: Value = serde_json::from_str(&genuine("tdx-lite-getquote.json")).unwrap();
    genuine["debug"] = true.into();
    let dir = tempfile::tempdir().unwrap();
    let (service, _pccs) = genuine_service(dir.path(), None).await;
    assert_eq!(service.verify(&genuine).await.details.rtmr_debug, Some(Vec::new()), "nothing differs");
}

#[tokio::test]
async fn a_bundle_brings_its_own_collateral() {
    let bed = Bed::new();
    let (pccs, image) = (Web::pccs(bed.collateral()).await, Image::documented());
    let service = Service::start(bed.settings(&pccs, None), NOW).await;
    let mut bundle = bed.request(&image, REPORT_DATA);
    bundle["collateral"] = serde_json::to_value(bed.collateral()).unwrap();

    assert!(service.verify(&bundle).await.is_valid);
    assert_eq!(pccs.requests(), 0);

    bundle["collateral"] = serde_json::to_value(Bed::new().collateral()).unwrap();
    assert_eq!(outcome(&service.verify(&bundle).await, "quote-signature"), "fail", "papers of another vendor");
    bundle["collateral"] = serde_json::to_value(bed.collateral_at(NOW - 60 * 86_400)).unwrap();
    assert_eq!(outcome(&service.verify(&bundle).await, "quote-signature"), "fail", "papers of another month");
}

#[tokio::test]
async fn without_collateral_the_question_is_undecided() {
    let bed = Bed::new();
    let nowhere = Web::file(None).await;
    let service = Service::start(bed.settings(&nowhere, None), NOW).await;

    let answer = service.verify(bed.request(&Image::documented(), REPORT_DATA)).await;

    assert_eq!((answer.is_valid, answer.verdict.as_str(), outcome(&answer, "quote-signature")), (false, "UNDECIDED", "unknown"));
    assert!(answer.reason.as_ref().unwrap().contains("404") && !answer.fix.is_empty(), "{answer:#?}");
}

#[tokio::test]
async fn requests_that_are_no_evidence_get_code_cause_and_fix() {
    let dir = tempfile::tempdir().unwrap();
    let pccs = Web::file(None).await;
    let file = dstack_verifier::config::ConfigFile { max_body_kib: 16, ..settings(dir.path(), &pccs, None) };
    let service = Service::start(file, NOW).await;

    for body in
        ["", "{}", "no", "{\"quote\":1}", "{\"quote\":\"zz\"}", "{\"attestation\":\"ff\"}", "{\"quote\":\"00\",\"event_log\":\"x\"}"]
    {
        let (status, error) = service.refuse(body).await;
        assert_eq!((status, error.code.as_str()), (StatusCode::BAD_REQUEST, "verifier/no-evidence"), "{body}");
        assert!(!error.message.is_empty() && error.fix.contains("event_log"), "{body}");
    }
    let (status, error) = service.refuse(vec![b' '; (16 << 10) + 1]).await;
    assert_eq!((status, error.code.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "verifier/too-large"));
    let (status, body) = service.get("/nothing").await;
    assert!(status == StatusCode::NOT_FOUND && body.contains("verifier/no-route"), "{body}");
    assert_eq!(service.get("/verify").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn health_and_metrics_answer() {
    let bed = Bed::new();
    let pccs = Web::pccs(bed.collateral()).await;
    let service = Service::start(bed.settings(&pccs, None), NOW).await;
    service.verify(bed.request(&Image::documented(), REPORT_DATA)).await;

    let (status, health) = service.get("/health").await;
    let (_, metrics) = service.get("/metrics").await;

    assert_eq!(
        (status, serde_json::from_str::<Value>(&health).unwrap()),
        (StatusCode::OK, json!({"status": "ok", "service": "dstack-verifier"}))
    );
    for line in ["dstack_verifier_verdicts_total{verdict=\"SIMULATED\"} 1", "dstack_verifier_collateral_fetches_total 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let pccs = Web::file(None).await;
    let file = dstack_verifier::config::ConfigFile { max_requests: 1, ..settings(dir.path(), &pccs, None) };
    let service = Service::start(file, NOW).await;
    let mut slow = std::net::TcpStream::connect(service.address).unwrap();
    slow.write_all(b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").unwrap();
    while !service.get("/metrics").await.1.contains("dstack_verifier_requests_in_flight 1") {
        tokio::task::yield_now().await;
    }

    let (status, error) = service.refuse("{}").await;

    assert_eq!((status, error.code.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "verifier/busy"));
    drop(slow);
}

#[tokio::test]
async fn every_truncation_of_a_request_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _pccs) = genuine_service(dir.path(), None).await;
    let request: Value = serde_json::from_str(&genuine("tdx-lite-getquote.json")).unwrap();
    // What follows the signed part is zero padding, which may be cut.
    let quote = request["quote"].as_str().unwrap().trim_end_matches('0');

    for length in (0..quote.len()).step_by(97) {
        let mut cut = request.clone();
        cut["quote"] = quote[..length].into();
        let (status, body) = service.post(cut.to_string()).await;
        match status {
            StatusCode::OK => assert!(!serde_json::from_slice::<dstack_api::verifier::VerifyResponse>(&body).unwrap().is_valid, "{length}"),
            status => assert_eq!(status, StatusCode::BAD_REQUEST, "{length}"),
        }
    }
}

#[tokio::test]
async fn guests_of_other_platforms_are_told_by_their_envelopes() {
    let read =
        |name: &str| std::fs::read(format!("{}/../../crates/attestation/tests/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (dir, pccs) = (tempfile::tempdir().unwrap(), Web::file(None).await);
    let service = Service::start(settings(dir.path(), &pccs, None), 1_784_073_600).await;
    let collateral: Value = serde_json::from_slice(&read("tdx/collateral/00806f050000-tdx-platform-20260630-e19.json")).unwrap();
    let request = |name: &str| json!({ "attestation": hex::encode(read(name)), "collateral": collateral });

    let gcp = service.verify(request("tpm/gcp-attestation-1.bin")).await;
    let snp = service.verify(request("snp/dstack-vm.envelope.bin")).await;

    assert_eq!(gcp.details.tee_variant.as_deref(), Some("dstack-gcp-tdx"), "{gcp:#?}");
    assert!(gcp.details.quote_verified && gcp.details.event_log_verified, "{gcp:#?}");
    assert!(!gcp.is_valid && !gcp.details.os_image_hash_verified, "its image's document is not in the envelope");
    let app = gcp.details.app_info.as_ref().unwrap();
    assert_eq!(app.mr_aggregated, "45945647b298002fab5255ac6d0fc84be25122a385fb05d51be6d1bd6483fc38");
    assert_eq!(outcome(&gcp, "tpm-binding"), "pass");
    assert!(snp.is_valid, "{snp:#?}");
    assert_eq!(snp.details.tee_variant.as_deref(), Some("dstack-amd-sev-snp"));
    assert_eq!(snp.details.app_info.as_ref().unwrap().app_id, "86e59625be93207bc2351c4d1bba20037cec8e16");
}
