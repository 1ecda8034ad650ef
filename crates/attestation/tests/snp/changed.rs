//! Reports, certificates and roots with single changes: each is refused at its link.

use dstack_attestation::{
    Fault, Link, TrustAnchors, Vendor,
    sev_snp::{ReportError, UnverifiedReport},
};
use proptest::prelude::*;

use crate::cases::{STEP, assert_refused, dstack_vm, must_cases, must_read, verify, vlek};

#[test]
fn changed_evidence_is_refused_at_the_link_that_is_broken() {
    use Fault::{Expired, Invalid, Malformed, NotYetValid, OtherPlatform, OtherRoot};
    use Link::{AttestationKey, CertificateChain, Format, Signature};
    let expected = [
        ("milan-measurement", Signature, Invalid),
        ("milan-report-data", Signature, Invalid),
        ("milan-host-data", Signature, Invalid),
        ("milan-policy", Signature, Invalid),
        ("milan-chip-id", AttestationKey, OtherPlatform),
        ("milan-reported-tcb", AttestationKey, OtherPlatform),
        ("milan-vmpl", Signature, Invalid),
        ("milan-sig-r", Signature, Invalid),
        ("milan-sig-s", Signature, Invalid),
        ("milan-sig-algo", Format, Malformed),
        ("milan-truncated", Format, Malformed),
        ("milan-version-0", Format, Malformed),
        ("milan-vek-tampered", CertificateChain, Fault::Missing),
        ("milan-other-chip-vcek", AttestationKey, OtherPlatform),
        ("milan-wrong-product-ca", CertificateChain, OtherRoot),
        ("milan-wrong-ark", CertificateChain, OtherRoot),
        ("milan-vek-not-yet-valid", CertificateChain, NotYetValid),
        ("milan-vek-expired", CertificateChain, Expired),
        ("milan-trailing", Format, Malformed),
        ("vlek-expired", CertificateChain, Expired),
        ("vlek-under-ask", CertificateChain, OtherRoot),
    ];
    let cases = must_cases("negative.json");
    assert_eq!(cases.len(), expected.len());
    for case in cases {
        let (_, link, fault) = expected.iter().find(|(id, ..)| *id == case.id).unwrap();
        assert_refused(case.verify(), *link, *fault, &case.id);
    }
}

#[test]
fn reports_of_every_other_length_are_refused() {
    for case in must_cases("cases.json").iter().chain(&must_cases("negative.json")) {
        let report = [must_read(&case.report), vec![0; 64]].concat();
        for got in (0..report.len()).filter(|len| *len != 1184) {
            assert_eq!(UnverifiedReport::parse(&report[..got]), Err(ReportError::Length { got }), "{}", case.id);
        }
    }
}

#[test]
fn certificates_that_are_cut_off_are_refused() {
    for case in [dstack_vm(), vlek()] {
        let report = must_read(&case.report);
        for place in 0..3 {
            let whole = case.chain();
            for len in (0..whole[place].len()).filter(|len| len % 3 == 0 || len + 9 > whole[place].len()) {
                let mut chain = whole.clone();
                chain[place].truncate(len);
                let result = case.verify_with(&report, chain, case.time);
                assert_refused(result, Link::CertificateChain, Fault::Malformed, &format!("certificate {place} cut to {len}"));
            }
        }
    }
}

#[test]
fn a_report_with_any_byte_changed_is_refused() {
    for case in [dstack_vm(), vlek()] {
        let report = must_read(&case.report);
        for at in (0..report.len()).step_by(STEP) {
            let mut changed = report.clone();
            changed[at] ^= 1 << (at % 8);
            let result = case.verify_with(&changed, case.chain(), case.time);
            assert!(result.is_err(), "{} byte {at:#x}", case.id);
        }
    }
}

/// Between what is signed and the signature stands the name of the algorithm once more, which nothing covers.
#[test]
fn a_certificate_with_any_byte_changed_is_refused() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    for place in 0..3 {
        let whole = case.chain();
        let signed_until = 8 + usize::from(u16::from_be_bytes([whole[place][6], whole[place][7]]));
        let unsigned = signed_until..whole[place].len() - 517;
        assert!(unsigned.len() < 80);
        for at in (place..whole[place].len()).step_by(2 * STEP) {
            let mut chain = whole.clone();
            chain[place][at] ^= 1 << (at % 8);
            let result = case.verify_with(&report, chain, case.time);
            assert!(result.is_err() || unsigned.contains(&at) && place < 2, "certificate {place} byte {at}");
        }
    }
}

#[test]
fn a_root_of_another_vendor_does_not_help() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let anchors = TrustAnchors::hardware().replace(Vendor::Amd, [must_read("ca/ark-genoa.der")]).unwrap();

    assert_refused(verify(&report, case.chain(), case.time, &anchors), Link::CertificateChain, Fault::OtherRoot, "other product");
    let anchors = TrustAnchors::hardware().replace(Vendor::Amd, []).unwrap();
    assert_refused(verify(&report, case.chain(), case.time, &anchors), Link::CertificateChain, Fault::Missing, "no root");
    let chosen = TrustAnchors::hardware().replace(Vendor::Amd, [must_read("ca/ark-milan.der")]).unwrap();
    assert!(verify(&report, case.chain(), case.time, &chosen).is_ok());
}

#[test]
fn a_missing_key_is_called_missing() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let others = vec![must_read("keys/vlek-296a7c99.der"), must_read(&case.ask), must_read("../../../roots/intel-sgx-root-ca.der")];

    let detail = assert_refused(case.verify_with(&report, vec![], case.time), Link::CertificateChain, Fault::Missing, "nothing");
    assert_eq!(detail, "no VCEK certificate was given");
    assert_refused(case.verify_with(&report, others, case.time), Link::CertificateChain, Fault::Missing, "only others");
    let detail = assert_refused(
        case.verify_with(&report, vec![b"0garbage".to_vec()], case.time),
        Link::CertificateChain,
        Fault::Malformed,
        "garbage",
    );
    assert!(detail.contains("cannot be read"), "{detail}");
}

#[test]
fn heaps_of_certificates_are_refused() {
    let case = dstack_vm();
    let report = must_read(&case.report);
    let vek = must_read(&case.vek);
    let result = |count| case.verify_with(&report, vec![vek.clone(); count], case.time);
    assert!(result(32).is_ok());
    assert_refused(result(33), Link::CertificateChain, Fault::Malformed, "33 certificates");
    let is_too_large = |length: usize| {
        let large = [vec![0x30], vec![0; length - 1]].concat();
        let result = case.verify_with(&report, vec![vek.clone(), large], case.time);
        assert_refused(result, Link::CertificateChain, Fault::Malformed, "large").contains("one of more than 16384 bytes")
    };
    assert_eq!([16_384, 16_385, 16_386].map(is_too_large), [false, true, true]);
    let zeros = vec![0; 10 << 20];
    assert_refused(case.verify_with(&report, vec![zeros.clone()], case.time), Link::CertificateChain, Fault::Malformed, "10 MiB of zeros");
    assert_refused(case.verify_with(&zeros, case.chain(), case.time), Link::Format, Fault::Malformed, "10 MiB of zeros");
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(report in proptest::collection::vec(any::<u8>(), 1184), certificate in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = UnverifiedReport::parse(&report);
        let mut forged = report;
        forged[..4].copy_from_slice(&5_u32.to_le_bytes());
        forged[0x34..0x38].copy_from_slice(&1_u32.to_le_bytes());
        prop_assert!(verify(&forged, vec![certificate.clone(), [vec![0x30], certificate].concat()], 1_700_000_000, &TrustAnchors::hardware()).is_err());
    }
}
