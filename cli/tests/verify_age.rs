//! `dstack verify --policy` with a largest age of the vendor's papers: known and small enough, or refused. Never passed over.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod command;

use command::{Answer, EVIDENCE, base64, evidence, judge, path_of, scratch};
use serde_json::json;

fn file(name: &str) -> String {
    path_of(&format!("{EVIDENCE}{name}"))
}

/// The verdict about `input` if papers may be as old as `age`.
fn aged(age: &str, input: &str, more: &[&str]) -> Answer {
    let policy = format!(
        "version = 1\ndebug = \"report\"\n[image]\nrequired = false\n[tdx]\nmr_signer_seam = \"endorsed\"\n[age]\nmax_collateral = \"{age}\"\n"
    );
    let policy = scratch("policy.toml", policy.as_bytes());
    judge(input, &[&["--policy", &policy], more].concat())
}

#[test]
fn tcb_papers_of_intel_are_dated() {
    let collateral = |name: &str| ["--collateral".to_owned(), file(name)];
    let cases = [
        (
            file("tdx/quotes/f1c8503301126c30.bin"),
            collateral("tdx/collateral/b0c06f000000-tdx-platform-20250313-e17.json"),
            "2025-03-23T20:36:12Z",
        ),
        (
            file("sgx/quotes/268c06813379d1af.bin"),
            collateral("sgx/collateral/00606a000000-sgx-platform-20240514-e17.json"),
            "2024-05-21T15:30:46Z",
        ),
    ];
    for (quote, collateral, time) in cases {
        let more = [collateral[0].as_str(), &collateral[1], "--at", time];

        let young = aged("30d", &quote, &more);
        let old = aged("1d", &quote, &more);

        assert_eq!((young.code, &young.check("freshness")["outcome"]), (0, &"pass".into()), "{}", young.out);
        assert_eq!((old.code, &old.failed().unwrap()["name"]), (1, &"freshness".into()), "{}", old.out);
        assert!(old.json()["reason"].as_str().unwrap().contains("s old"), "{}", old.out);
    }
}

#[test]
fn platforms_whose_papers_have_no_date_are_refused_with_a_way_out() {
    let chain = file("snp/keys/vcek-1b35b841.der");
    let chip = file("cca/cpak-01.der");
    let gpu = json!({
        "certificate": base64(&evidence(&format!("{EVIDENCE}gpu/hopper-chain.pem"))),
        "evidence": base64(&evidence(&format!("{EVIDENCE}gpu/hopper-report.bin"))),
    });
    let gpu = scratch("gpu", json!({ "arch": "HOPPER", "evidence_list": [gpu] }).to_string().as_bytes());
    let cases: [(&str, String, Vec<&str>); 4] = [
        ("sev-snp", file("snp/reports/a20e02a2e8198894.bin"), vec!["--chain", &chain, "--at", "2026-08-16T00:00:00Z"]),
        ("nitro-enclave", file("nitro/ef18ccdc05f3ab27.cose"), vec!["--at", "2025-12-25T16:04:19Z"]),
        ("nvidia-gpu", gpu, Vec::new()),
        ("arm-cca", file("cca/cca-token-01.cbor"), vec!["--root", &chip]),
    ];
    for (platform, input, more) in cases {
        let answer = aged("36500d", &input, &more);

        assert_eq!((answer.code, &answer.json()["platform"]), (1, &platform.into()), "{}{}", answer.out, answer.err);
        assert_eq!(answer.failed().unwrap()["name"], "freshness", "{}", answer.out);
        let reason = answer.json()["reason"].as_str().unwrap();
        assert!(reason.contains("age of the vendor's papers cannot be determined") && reason.contains(platform), "{reason}");
        assert!(!answer.json()["fix"].as_str().unwrap().is_empty());
    }
}
