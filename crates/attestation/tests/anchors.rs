//! The roots that are trusted, and which of them a refusal names: the one that the papers of the evidence are under.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Anchor, AnchorKind, Check, Endorsements, Platform, PlatformVerifier, Policy, QuoteCollateral, TdxVerifier, TrustAnchorError,
    TrustAnchors, Vendor, Verifier, sev_snp::SevSnp,
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
fn a_chosen_root_takes_the_place_of_its_vendors_and_of_no_others() {
    let (chosen, simulated) = (vec![0x30, 1], vec![0x30, 2]);
    let hardware = TrustAnchors::hardware();
    let anchors = hardware.clone().danger_simulated_root(simulated.clone()).unwrap().replace(Vendor::Intel, [chosen.clone()]).unwrap();
    let ders = |anchors: &TrustAnchors, vendor| anchors.roots(vendor).map(|root| root.der().to_vec()).collect::<Vec<_>>();

    assert_eq!(ders(&anchors, Vendor::Intel), [simulated, chosen.clone()]);
    assert_eq!(ders(&anchors, Vendor::Amd), ders(&hardware, Vendor::Amd));
    assert_eq!(ders(&hardware, Vendor::Amd).len(), 3);
    assert!(matches!(anchors.find(&chosen), Some(AnchorKind::Chosen { vendor: Vendor::Intel, .. })));
    assert_eq!(anchors.find(&must_read("roots/intel-sgx-root-ca.der")), None);
    assert_eq!(name(anchors.find(&must_read("roots/amd-ark-turin.der"))), Some("AMD ARK-Turin"));
}

#[test]
fn there_is_one_simulated_root_beside_the_genuine_ones() {
    let simulated = |byte: u8| vec![0x30, byte];
    let hardware = TrustAnchors::hardware();
    let anchors = hardware.clone().danger_simulated_root(simulated(1)).unwrap().danger_simulated_root(simulated(2)).unwrap();

    assert!(anchors.accepts_simulated() && !hardware.accepts_simulated());
    assert_eq!((name(anchors.find(&simulated(1))), name(anchors.find(&simulated(2)))), (None, Some("simulated")));
    assert_eq!(anchors.roots(Vendor::Intel).count(), 2);
    assert!(Verifier::new(anchors.clone(), Policy::default()).anchors().accepts_simulated());
    assert_eq!(anchors.roots(Vendor::Intel).map(Anchor::vendor).collect::<Vec<_>>(), [Vendor::Intel; 2]);
}

#[test]
fn roots_have_at_most_8_kib() {
    let root = |length: usize| [vec![0x30], vec![0; length - 1]].concat();
    let is_taken = |length: usize| TrustAnchors::hardware().replace(Vendor::Arm, [root(length)]).is_ok();

    assert_eq!([8192, 8193, 8194].map(is_taken), [true, false, false]);
    assert_eq!(TrustAnchors::hardware().replace(Vendor::Arm, [vec![0x31; 100]]).unwrap_err(), TrustAnchorError::NotACertificate);
}

#[test]
fn every_platform_has_the_vendor_whose_roots_count() {
    use Vendor::{Amd, Arm, Aws, Google, Intel, Microsoft, Nvidia};

    let vendors = Platform::ALL.map(Platform::vendor);

    assert_eq!(vendors, [Some(Intel), Some(Intel), Some(Amd), Some(Aws), Some(Aws), None, Some(Nvidia), Some(Arm)]);
    assert_eq!(
        Platform::ALL.map(|platform| platform.to_string()).join(" "),
        "tdx sgx sev-snp nitro-enclave aws-nitro-tpm tpm nvidia-gpu arm-cca"
    );
    let names = [Intel, Amd, Aws, Google, Microsoft, Nvidia, Arm].map(|vendor| vendor.to_string());
    assert_eq!(names.join(" "), "Intel AMD AWS Google Microsoft NVIDIA Arm");
}
