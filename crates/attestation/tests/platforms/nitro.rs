//! Genuine documents.

use dstack_attestation::{
    Fault, Link, Platform, PlatformVerifier as _, Refusal, TrustAnchors, Vendor,
    nitro::{
        MAX_CLOCK_SKEW, MAX_DOCUMENT_AGE, NitroEnclave, NitroTpm, Staleness, UnverifiedDocument, VerifiedDocument, check_freshness,
        device_id, device_id_by_prefix, enclave_digest,
    },
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::pki::{Party, at, bit_flips, must_read, trusting};

#[derive(Deserialize)]
struct Case {
    file: String,
    time: u64,
    accept: bool,
    debug: bool,
    reason: String,
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&must_read("nitro/cases.json")).unwrap()
}

fn document(file: &str) -> Vec<u8> {
    must_read(&format!("nitro/{file}"))
}

/// A genuine document with neither debug mode nor anything behind it.
fn genuine() -> (Vec<u8>, u64) {
    (document("7b7c10f43df09746.cose"), 1_779_365_257)
}

fn verify(bytes: &[u8], now: u64) -> Result<VerifiedDocument, Refusal> {
    at(now, &TrustAnchors::hardware(), |context| NitroEnclave.verify_document(bytes, context))
}

#[test]
fn every_document_gets_its_verdict() {
    for case in cases() {
        let verified = verify(&document(&case.file), case.time);

        match verified {
            Ok(verified) => {
                assert!(case.accept, "{}: {}", case.file, case.reason);
                let platform = verified.platform();
                assert_eq!(platform.debug(), Some(case.debug), "{}", case.file);
                assert_eq!(platform.issued_at(), Some(case.time), "{}", case.file);
                assert_eq!(platform.register("pcr0").map(<[u8]>::len), Some(48), "{}", case.file);
                assert!(platform.anchor().is_built_in(), "{}", case.file);
            }
            Err(refusal) => assert!(!case.accept, "{}: {refusal}", case.file),
        }
    }
}

#[test]
fn refusals_say_which_link_failed() {
    let link_of = |file: &str| {
        let case = cases().into_iter().find(|case| case.file == file).unwrap();
        let refusal = verify(&document(file), case.time).unwrap_err();
        (refusal.link, refusal.fault)
    };

    assert_eq!(link_of("4164bfae9500b1ef.cose"), (Link::CertificateChain, Fault::Malformed));
    assert_eq!(link_of("7df2cdc016ae8928.cose"), (Link::Signature, Fault::Invalid));
    assert_eq!(link_of("a132128a1fca69a1.cose").0, Link::CertificateChain);
}

#[test]
fn rejects_documents_whose_key_has_expired_or_is_not_valid_yet() {
    let (bytes, time) = genuine();

    for (now, fault) in [(time + 86_400, Fault::Expired), (time - 86_400, Fault::NotYetValid)] {
        let refusal = verify(&bytes, now).unwrap_err();
        assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, fault));
    }
}

#[test]
fn rejects_genuine_documents_under_another_root() {
    let (bytes, time) = genuine();
    let stranger = Party::root("aws.nitro-enclaves");

    let refusal = at(time, &trusting(Vendor::Aws, &stranger.der), |context| NitroEnclave.verify(&bytes, context)).unwrap_err();
    assert_eq!((refusal.platform, refusal.link), (Platform::NitroEnclave, Link::CertificateChain));

    let none = TrustAnchors::hardware().replace(Vendor::Aws, []).unwrap();
    let refusal = at(time, &none, |context| NitroEnclave.verify(&bytes, context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::OtherRoot));
}

#[test]
fn rejects_the_document_of_an_enclave_as_that_of_an_instance() {
    let (bytes, time) = genuine();

    let refusal = at(time, &TrustAnchors::hardware(), |context| NitroTpm.verify(&bytes, context)).unwrap_err();

    assert_eq!((refusal.platform, refusal.link, refusal.fault), (Platform::NitroTpm, Link::Format, Fault::Malformed));
    assert_eq!(refusal.detail, "the document is of an enclave");
}

#[test]
fn no_truncation_is_a_document() {
    let (bytes, _) = genuine();

    for length in 0..bytes.len() {
        assert!(UnverifiedDocument::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let (bytes, time) = genuine();

    for (position, flipped) in bit_flips(&bytes, 157) {
        assert!(verify(&flipped, time).is_err(), "byte {position}");
    }
}

#[test]
fn what_follows_a_document_must_be_the_rest_of_its_envelope() {
    let whole = document("ef18ccdc05f3ab27.cose");
    let alone = &whole[..whole.len() - 179];
    let with = |rest: &[u8]| UnverifiedDocument::parse(&[alone, rest].concat()).is_ok();
    let rest = whole[whole.len() - 179..].to_vec();
    let mut other_report_data = rest.clone();
    other_report_data[40] ^= 1;

    assert!(with(&[]) && with(&rest));
    assert!(!with(&[0]));
    assert!(!with(&rest[..178]));
    assert!(!with(&[rest.as_slice(), &[0]].concat()));
    assert!(!with(&other_report_data));
}

#[test]
fn ten_megabytes_of_zeros_are_refused() {
    assert!(UnverifiedDocument::parse(&vec![0; 10 << 20]).is_err());
    assert!(UnverifiedDocument::parse(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(UnverifiedDocument::parse(&vec![0x81; 60 << 10]).is_err(), "nested arrays");
}

#[test]
fn identity_is_the_instance_and_the_image() {
    let case = cases().into_iter().find(|case| case.file == "dacda21aa0a07837.cose").unwrap();
    let verified = verify(&document(&case.file), case.time).unwrap();
    let document = verified.document();
    let sha256 = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    let image = [document.pcrs[&0], document.pcrs[&1], document.pcrs[&2]].concat();

    assert_eq!(document.module_id, "i-0827e799ec9232d44-enc019b55a68bd2ed4b");
    assert_eq!(device_id(&verified), sha256(b"i-0827e799ec9232d44"));
    assert_eq!(device_id_by_prefix(&verified), sha256(b"i"));
    assert_eq!(enclave_digest(&verified), Some(sha256(&image)));
    // The image that the file's own configuration names.
    assert_eq!(hex::encode(sha256(&image)), "e0e742bd62280472ea8406477542 03d599cb39a7966cfed11237c1e86de9c857".replace(' ', ""));
    assert_eq!(verified.platform().hardware_id(), Some(b"i-0827e799ec9232d44".as_slice()));
    assert_eq!(verified.platform().report_data(), [0; 64]);
}

#[test]
fn report_data_is_the_user_data_or_else_the_nonce() {
    let (bytes, time) = genuine();
    let verified = verify(&bytes, time).unwrap();

    let nonce = verified.document().nonce.clone().unwrap();
    assert_eq!(verified.platform().report_data(), nonce);
    assert_eq!(verified.platform().fact("nonce"), Some(hex::encode(nonce).as_str()));
}

#[test]
fn documents_are_fresh_for_an_hour_and_five_minutes_ahead() {
    let (made, age, skew) = (1_700_000_000, MAX_DOCUMENT_AGE.as_secs(), MAX_CLOCK_SKEW.as_secs());

    assert_eq!(check_freshness(made, made + age), Ok(()));
    assert_eq!(check_freshness(made, made + age + 1), Err(Staleness::Old { age_s: 3601 }));
    assert_eq!(check_freshness(made, made - skew), Ok(()));
    assert_eq!(check_freshness(made, made - skew - 1), Err(Staleness::FromTheFuture { ahead_s: 301 }));
}
