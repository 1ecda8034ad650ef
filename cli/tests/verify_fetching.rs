//! Papers that come neither with the evidence nor by hand: fetched from the vendor, kept in a bundle, never fetched with `--offline`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod command;

use command::{Answer, EVIDENCE, evidence, path_of, rfc3339, scratch, verify};
use dstack_attestation::QuoteCollateral;
use dstack_testkit::vendor_services::VendorService;

const REPORT: &str = "snp/reports/a20e02a2e8198894.bin";
const REPORT_TIME: u64 = 1_786_842_304;
const LOADED_KEY_REPORT: &str = "snp/reports/decdab949afc5906.bin";
const QUOTE: &str = "sgx/quotes/268c06813379d1af.bin";
const QUOTE_COLLATERAL: &str = "sgx/collateral/00606a000000-sgx-platform-20240514-e17.json";
const QUOTE_TIME: u64 = 1_716_305_446;

fn file(name: &str) -> String {
    path_of(&format!("{EVIDENCE}{name}"))
}

/// A `verify.toml` that names these services.
fn config(lines: &str) -> String {
    scratch("verify.toml", lines.as_bytes())
}

fn judge(input: &str, config: &str, time: u64, more: &[&str]) -> Answer {
    verify(&[&[input, "--config", config, "--at", &rfc3339(time), "--json"], more].concat())
}

async fn sgx_service() -> VendorService {
    let text = String::from_utf8(evidence(&format!("{EVIDENCE}{QUOTE_COLLATERAL}"))).unwrap();
    VendorService::intel("sgx", QuoteCollateral::parse_json(&text).unwrap()).await
}

fn assert_undetermined(answer: &Answer, code: &str) {
    assert_eq!(answer.code, 3, "{}{}", answer.out, answer.err);
    assert!(answer.err.contains(code) && answer.err.contains("\"cause\"") && answer.err.contains("\"fix\""), "{}", answer.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_snp_report_is_verified_with_what_amd_has() {
    let service = VendorService::amd().await;
    let config = config(&format!("amd_kds_url = \"{}\"\n", service.url));
    let bundle = scratch("bundle", b"");

    let fetched = judge(&file(REPORT), &config, REPORT_TIME, &["--save", &bundle]);
    let again = judge(&bundle, &config, REPORT_TIME, &["--offline"]);

    assert_eq!((fetched.code, again.code), (0, 0), "{}{}{}", fetched.out, fetched.err, again.err);
    assert_eq!(fetched.check("certificate-chain")["outcome"], "pass");
    assert_eq!(fetched.json()["claims"], again.json()["claims"]);
    assert_eq!(service.requests(), 3, "key, issuers, revocation list: {:?}", service.targets());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_sgx_quote_is_verified_with_what_intel_has_for_enclaves() {
    let service = sgx_service().await;
    let config = config(&format!("collateral_url = \"{}\"\n", service.url));
    let bundle = scratch("bundle", b"");

    let fetched = judge(&file(QUOTE), &config, QUOTE_TIME, &["--save", &bundle]);
    let again = judge(&bundle, &config, QUOTE_TIME, &["--offline"]);

    assert_eq!((fetched.code, again.code), (0, 0), "{}{}{}", fetched.out, fetched.err, again.err);
    assert_eq!((&fetched.json()["platform"], &fetched.json()["tcb_status"]), (&"sgx".into(), &"SWHardeningNeeded".into()));
    assert!(service.targets().iter().all(|target| target.starts_with("/sgx/")), "{:?}", service.targets());
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_nothing_is_asked_and_nothing_is_decided() {
    let (amd, intel) = (VendorService::amd().await, sgx_service().await);
    let config = config(&format!("amd_kds_url = \"{}\"\ncollateral_url = \"{}\"\n", amd.url, intel.url));

    for (input, time) in [(REPORT, REPORT_TIME), (QUOTE, QUOTE_TIME)] {
        let answer = judge(&file(input), &config, time, &["--offline"]);

        assert_undetermined(&answer, "verify/no-collateral");
        assert!(answer.err.contains("--offline"), "{}", answer.err);
    }
    assert_eq!((amd.requests(), intel.requests()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_help_leaves_the_question_open() {
    let nothing = VendorService::start(|_| None).await;
    let page = VendorService::start(|_| Some((None, b"<!doctype html>".to_vec()))).await;
    let both = |url: &str| config(&format!("amd_kds_url = \"{url}\"\ncollateral_url = \"{url}\"\n"));

    for (url, code) in [
        (nothing.url.as_str(), "collateral/refused"),
        (page.url.as_str(), "collateral/malformed"),
        ("http://127.0.0.1:1", "collateral/unreachable"),
        ("ftp://127.0.0.1", "collateral/address"),
    ] {
        let config = both(url);
        assert_undetermined(&judge(&file(REPORT), &config, REPORT_TIME, &[]), code);
        assert_undetermined(&judge(&file(QUOTE), &config, QUOTE_TIME, &[]), code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_whose_key_amd_gives_to_nobody_say_who_has_it() {
    let service = VendorService::amd().await;
    let config = config(&format!("amd_kds_url = \"{}\"\n", service.url));
    let mut masked = evidence(&format!("{EVIDENCE}{REPORT}"));
    masked[0x1a0..0x1e0].fill(0);

    let loaded = judge(&file(LOADED_KEY_REPORT), &config, 1_739_052_861, &[]);
    let masked = judge(&scratch("masked", &masked), &config, REPORT_TIME, &[]);

    for (answer, why) in [(loaded, "VLEK"), (masked, "does not name its chip")] {
        assert_undetermined(&answer, "collateral/chip-key");
        assert!(answer.err.contains(why) && answer.err.contains("--chain"), "{}", answer.err);
    }
    assert_eq!(service.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_for_evidence_that_papers_cannot_help() {
    let (amd, intel) = (VendorService::amd().await, sgx_service().await);
    let config = config(&format!("amd_kds_url = \"{}\"\ncollateral_url = \"{}\"\n", amd.url, intel.url));
    let cut = |name: &str| {
        let bytes = evidence(&format!("{EVIDENCE}{name}"));
        scratch("cut", &bytes[..bytes.len() - 1])
    };
    let foreign = path_of("crates/attestation/roots/amd-ark-milan.der");

    for (answer, link) in [
        (judge(&cut(REPORT), &config, REPORT_TIME, &[]), "format"),
        (judge(&cut(QUOTE), &config, QUOTE_TIME, &[]), "format"),
        (judge(&file(QUOTE), &config, QUOTE_TIME, &["--root", &foreign]), "certificate-chain"),
    ] {
        assert_eq!((answer.code, &answer.failed().unwrap()["name"]), (1, &link.into()), "{}{}", answer.out, answer.err);
    }
    assert_eq!((amd.requests(), intel.requests()), (0, 0));
}
