//! Evidence without its papers, over HTTP: they are fetched from the vendor, once.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_attestation::QuoteCollateral;
use dstack_testkit::vendor_services::VendorService;
use dstack_verifier::config::ConfigFile;
use testbed::{ATTESTATION_DATA, Service, Web, outcome, settings};

const REPORT_TIME: u64 = 1_786_842_304;
const QUOTE_TIME: u64 = 1_716_305_446;

fn hex_of(name: &str) -> String {
    hex::encode(std::fs::read(format!("{ATTESTATION_DATA}{name}")).unwrap())
}

async fn service(dir: &std::path::Path, intel: &str, amd: &str, now: u64) -> Service {
    let nobody = Web::file(None).await;
    let file = ConfigFile { collateral_url: intel.to_owned(), amd_kds_url: amd.to_owned(), ..settings(dir, &nobody, None) };
    Service::start(file, now).await
}

#[tokio::test]
async fn a_bare_snp_report_is_judged_with_what_amd_has() {
    let dir = tempfile::tempdir().unwrap();
    let amd = VendorService::amd().await;
    let service = service(dir.path(), &amd.url, &amd.url, REPORT_TIME).await;
    let request = serde_json::json!({ "report": hex_of("snp/reports/a20e02a2e8198894.bin") });

    let answer = service.verify(request.to_string()).await;
    service.verify(request.to_string()).await;

    assert!(answer.details.quote_verified, "{answer:#?}");
    assert_eq!((outcome(&answer, "signature"), answer.details.tee_variant.as_deref()), ("pass", Some("dstack-amd-sev-snp")));
    assert_eq!(amd.requests(), 3, "fetched once: {:?}", amd.targets());
}

#[tokio::test]
async fn a_bare_sgx_quote_is_judged_with_what_intel_has_for_enclaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{ATTESTATION_DATA}sgx/collateral/00606a000000-sgx-platform-20240514-e17.json");
    let intel = VendorService::intel("sgx", QuoteCollateral::parse_json(&std::fs::read_to_string(path).unwrap()).unwrap()).await;
    let service = service(dir.path(), &intel.url, "", QUOTE_TIME).await;

    let answer = service.verify(serde_json::json!({ "quote": hex_of("sgx/quotes/268c06813379d1af.bin") }).to_string()).await;

    assert!(answer.details.quote_verified, "{answer:#?}");
    assert_eq!((outcome(&answer, "signature"), answer.details.tcb_status.as_deref()), ("pass", Some("SWHardeningNeeded")));
    assert_eq!(intel.requests(), 4);
}

#[tokio::test]
async fn without_an_answer_of_the_vendor_nothing_is_decided() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(dir.path(), "http://127.0.0.1:1", "http://127.0.0.1:1", REPORT_TIME).await;

    for (field, name) in [("report", "snp/reports/a20e02a2e8198894.bin"), ("quote", "sgx/quotes/268c06813379d1af.bin")] {
        let answer = service.verify(serde_json::json!({ field: hex_of(name) }).to_string()).await;

        assert_eq!((answer.is_valid, answer.verdict.as_str()), (false, "UNDECIDED"), "{answer:#?}");
        assert_eq!(outcome(&answer, "signature"), "unknown");
        assert!(!answer.fix.is_empty());
    }
}
