//! Where several roots are trusted, a refusal names the one against which the evidence was held: the one its papers are under.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    AnchorKind, Check, Endorsements, Platform, PlatformVerifier, Policy, QuoteCollateral, TdxVerifier, TrustAnchors, Verifier,
    sev_snp::SevSnp,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/");

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The anchor named when bytes that are no evidence come with `endorsements`.
fn anchor<V: PlatformVerifier<Evidence = [u8]>>(verifier: &V, endorsements: &Endorsements) -> Option<AnchorKind> {
    let simulated = must_read("tests/testdata/synthetic/root_ca.der");
    let anchors = TrustAnchors::hardware().danger_simulated_root(simulated).unwrap();
    let error = Verifier::new(anchors, Policy::report_only()).verify_platform(verifier, b"no evidence", endorsements, 0, None).unwrap_err();
    assert_eq!(error.check, Check::QuoteFormat);
    error.anchor
}

fn name(anchor: Option<AnchorKind>) -> Option<&'static str> {
    match anchor? {
        AnchorKind::BuiltIn { name, .. } => Some(name),
        other => Some(if other.is_simulated() { "simulated" } else { "chosen" }),
    }
}

#[test]
fn collateral_tells_the_root_of_a_quote() {
    let of = |file: &str| {
        let text = String::from_utf8(must_read(&format!("tests/testdata/{file}"))).unwrap();
        name(anchor(&TdxVerifier, &QuoteCollateral::parse_json(&text).unwrap().into()))
    };

    assert_eq!(of("synthetic/tcb_expired.collateral.json"), Some("simulated"));
    assert_eq!(of("tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json"), Some("Intel SGX Root CA"));
    assert_eq!(name(anchor(&TdxVerifier, &Endorsements::default())), Some("Intel SGX Root CA"), "the first one");
}

#[test]
fn certificates_tell_the_root_of_a_report() {
    let of = |roots: &[&str]| {
        let certificates = roots.iter().map(|root| must_read(&format!("roots/amd-ark-{root}.der"))).collect();
        name(anchor(&SevSnp, &Endorsements { certificates, ..Endorsements::default() }))
    };

    assert_eq!([of(&["genoa"]), of(&["turin"])], [Some("AMD ARK-Genoa"), Some("AMD ARK-Turin")]);
    assert_eq!(of(&[]), Some("AMD ARK-Milan"), "the first one");
}

#[test]
fn every_platform_has_the_vendor_whose_roots_count() {
    use dstack_attestation::Vendor::{Amd, Arm, Aws, Intel, Nvidia};

    let vendors = Platform::ALL.map(Platform::vendor);

    assert_eq!(vendors, [Some(Intel), Some(Intel), Some(Amd), Some(Aws), Some(Aws), None, Some(Nvidia), Some(Arm)]);
    assert_eq!(
        Platform::ALL.map(|platform| platform.to_string()).join(" "),
        "tdx sgx sev-snp nitro-enclave aws-nitro-tpm tpm nvidia-gpu arm-cca"
    );
}
