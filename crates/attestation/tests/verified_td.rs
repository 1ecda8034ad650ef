//! What verified evidence of a genuine TD tells: every answer is the one an independent program has for the same bytes.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Check, Evidence, MrScope, Platform, Policy, QuoteCollateral, TdxVerifier, TrustAnchors, UnverifiedQuote, VerifiedEvidence, Verifier,
};
use sha2::{Digest as _, Sha256};

const EVIDENCE: &str = include_str!("testdata/envelopes/tdx-lite-getquote.json");
const COLLATERAL: &str = include_str!("testdata/tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json");
const NOW: u64 = 1_782_172_800;

fn verified() -> VerifiedEvidence {
    let endorsements = QuoteCollateral::parse_json(COLLATERAL).unwrap().into();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    verifier.verify(&Evidence::parse_json(EVIDENCE).unwrap(), &endorsements, NOW, None).unwrap()
}

#[test]
fn digests_of_the_vm_are_the_golden_ones() {
    let verified = verified();
    let ends_of = |digest: [u8; 32]| [hex::encode(&digest[..4]), hex::encode(&digest[30..])].join("…");

    assert_eq!(ends_of(verified.mr_system(MrScope::Runtime)), "118f754a…8f70");
    assert_eq!(ends_of(verified.mr_aggregated(MrScope::Runtime).unwrap()), "c758fa62…d2ee");
    assert_eq!(ends_of(verified.mr_aggregated(MrScope::BootTime).unwrap()), "f4e6117e…145e");
    assert_ne!(verified.mr_system(MrScope::BootTime), verified.mr_system(MrScope::Runtime), "without and with the key provider");
}

#[test]
fn fields_are_those_of_the_quote() {
    let verified = verified();
    let quote = UnverifiedQuote::parse(&Evidence::parse_json(EVIDENCE).unwrap().quote).unwrap();

    assert_eq!(verified.td_fields(), Some(quote.fields()));
    assert_eq!(verified.report_data(), &quote.fields().report_data);
    assert_eq!(verified.event_log().unwrap().registers(), &quote.fields().rtmr);
    assert_eq!(verified.tee_variant(), "dstack-tdx");
    assert_eq!(verified.platform().platform(), Platform::Tdx);
    assert!(verified.snp_fields().is_none() && verified.launch_document().is_none());
    assert_eq!(verified.vm_config().unwrap().os_image_hash.as_ref(), verified.os_image_hash());
}

#[test]
fn platform_is_the_one_its_papers_are_for() {
    let verified = verified();
    let ppid = verified.platform().hardware_id().unwrap();

    assert_eq!((verified.fmspc().map(hex::encode).as_deref(), ppid.len()), (Some("90c06f000000"), 16));
    assert_eq!(verified.device_id().as_slice(), Sha256::digest(ppid).as_slice());
    assert_eq!(verified.tcb_evaluation_data_number(), 19);
    assert_eq!(verified.anchor().to_string(), "Intel SGX Root CA (built in)");
    assert_eq!(verified.verified_at(), NOW);
    assert!((NOW + 1..NOW + 40 * 86_400).contains(&verified.collateral_expires_at()), "{}", verified.collateral_expires_at());
    assert_eq!(Some(verified.tcb_status()), verified.platform().tcb_status());
    assert_eq!(verified.advisory_ids(), verified.platform().advisory_ids());
    assert!(!verified.is_simulated() && verified.report().passed(Check::QuoteSignature));
}

#[test]
fn a_quote_alone_tells_the_same() {
    let evidence = Evidence::parse_json(EVIDENCE).unwrap();
    let endorsements = QuoteCollateral::parse_json(COLLATERAL).unwrap().into();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let whole = verified();

    let quote = verifier.verify_quote(&evidence.quote, &endorsements, NOW).unwrap();
    let (platform, _) = verifier.verify_platform(&TdxVerifier, &evidence.quote, &endorsements, NOW, None).unwrap();

    assert_eq!((Some(quote.fields()), quote.tcb_status()), (whole.td_fields(), whole.tcb_status()));
    assert_eq!((quote.anchor(), quote.advisory_ids()), (whole.anchor(), whole.advisory_ids()));
    assert_eq!((whole.platform(), quote.platform()), (&platform, &platform));
    assert!(quote.report().passed(Check::QuoteSignature) && quote.report().outcome(Check::Identity).is_none());
}
