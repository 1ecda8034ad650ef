//! Genuine reports with their keys, and the time at which each is judged.

use dstack_attestation::{
    Context, Endorsements, Fault, Link, Platform, Refusal, TrustAnchors,
    sev_snp::{SevSnp, VerifiedReport},
};
use serde::Deserialize;
use serde_json::Value;

pub(crate) const CRATE: &str = env!("CARGO_MANIFEST_DIR");
/// Every how many bytes one is changed: the portable signatures take a tenth of a second each where they are not optimised.
pub(crate) const STEP: usize = if cfg!(feature = "aws-lc") { 3 } else { 41 };

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) report: String,
    #[serde(default)]
    pub(crate) vek: String,
    #[serde(default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) product: String,
    #[serde(default)]
    pub(crate) ask: String,
    #[serde(default)]
    pub(crate) ark: String,
    #[serde(default)]
    pub(crate) time: u64,
    #[serde(default)]
    pub(crate) verdict: String,
    #[serde(default)]
    pub(crate) debug: bool,
    #[serde(default)]
    pub(crate) fields: Value,
}

pub(crate) fn must_read(name: &str) -> Vec<u8> {
    let path = match name.strip_prefix("ca/") {
        Some(root) if root.starts_with("ark-") => format!("{CRATE}/roots/amd-{root}"),
        Some(intermediate) => format!("{CRATE}/intermediates/amd-{intermediate}"),
        None => format!("{CRATE}/tests/testdata/snp/{name}"),
    };
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn must_cases(file: &str) -> Vec<Case> {
    serde_json::from_slice(&must_read(file)).unwrap()
}

pub(crate) fn verifiable() -> Vec<Case> {
    must_cases("cases.json").into_iter().filter(|case| case.verdict == "accept").collect()
}

/// The report of a dstack VM.
pub(crate) fn dstack_vm() -> Case {
    verifiable().into_iter().find(|case| case.report.contains("a20e02a2e8198894")).unwrap()
}

pub(crate) fn vlek() -> Case {
    verifiable().into_iter().find(|case| case.kind == "VLEK").unwrap()
}

pub(crate) fn vlek_of_version_2() -> Case {
    verifiable().into_iter().find(|case| case.report.contains("affb92f91b8f52f9")).unwrap()
}

impl Case {
    pub(crate) fn chain(&self) -> Vec<Vec<u8>> {
        vec![must_read(&self.vek), must_read(&self.ask), must_read(&self.ark)]
    }

    pub(crate) fn verify(&self) -> Result<VerifiedReport, Refusal> {
        self.verify_with(&must_read(&self.report), self.chain(), self.time)
    }

    pub(crate) fn verify_with(&self, report: &[u8], certificates: Vec<Vec<u8>>, now: u64) -> Result<VerifiedReport, Refusal> {
        verify(report, certificates, now, &TrustAnchors::hardware())
    }

    pub(crate) fn must_field(&self, name: &str) -> Vec<u8> {
        hex::decode(self.fields[name].as_str().unwrap()).unwrap()
    }
}

pub(crate) fn verify(report: &[u8], certificates: Vec<Vec<u8>>, now: u64, anchors: &TrustAnchors) -> Result<VerifiedReport, Refusal> {
    let endorsements = Endorsements { certificates, ..Endorsements::default() };
    SevSnp.verify_report(report, &Context { anchors, endorsements: &endorsements, now })
}

pub(crate) fn assert_refused(result: Result<VerifiedReport, Refusal>, link: Link, fault: Fault, what: &str) -> String {
    let refusal = result.err().unwrap_or_else(|| panic!("{what}: accepted"));
    assert_eq!((refusal.platform, refusal.link, refusal.fault), (Platform::SevSnp, link, fault), "{what}: {refusal}");
    refusal.detail
}

pub(crate) fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")).into_bytes()
}
