//! Certificates of running deployments, and ones issued here.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::io::Write as _;

use dstack_attestation::{Endorsements, Policy, QuoteCollateral, TrustAnchors, UnverifiedQuote, Verifier};
use dstack_manifest::AppId;
use dstack_ra_tls::{
    AppInfo, CaProfile, CertConfig, CertKey, CertRequest, CertificateAuthority, CertificateError, CsrError, Extension, LeafProfile,
    RaTlsCertificate, RequestBody, Validity, collateral::Platform, ra_tls_report_data, usage,
};
use proptest::prelude::*;
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/certificates/");
const NOW: u64 = 1_790_000_000;

#[derive(Debug, Deserialize)]
struct Case {
    file: String,
    verdict: String,
    report_data: Option<String>,
    cert_usage: Option<String>,
    app_id: Option<String>,
    event_log_len: Option<usize>,
}

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{DATA}{name}")).unwrap()
}

fn validity() -> Validity {
    Validity::starting(NOW, 3600)
}

fn authority(profile: CaProfile) -> CertificateAuthority {
    CertificateAuthority::self_signed(profile, CertKey::generate().unwrap(), validity()).unwrap()
}

#[test]
fn deployed_certificates_are_read_and_only_bound_ones_bind() {
    let cases: Vec<Case> = serde_json::from_slice(&must_read("cases.json")).unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let certificate = RaTlsCertificate::parse(&must_read(&case.file)).unwrap();

        assert_eq!(certificate.usage(), case.cert_usage.as_deref(), "{case:?}");
        assert_eq!(certificate.payload(Extension::AppId).map(hex::encode), case.app_id, "{case:?}");
        assert_eq!(certificate.payload(Extension::EventLog).map(<[u8]>::len), case.event_log_len, "{case:?}");
        let Some(report_data) = &case.report_data else {
            assert!(certificate.evidence().unwrap().is_none() && case.verdict == "ca", "{case:?}");
            continue;
        };
        let quote = UnverifiedQuote::parse(certificate.payload(Extension::TdxQuote).unwrap()).unwrap();
        let quoted = quote.fields().report_data;
        assert_eq!(hex::encode(quoted), *report_data);
        assert_eq!(quoted == ra_tls_report_data(certificate.spki_der()), case.verdict == "accept", "{case:?}");
        if case.verdict == "accept" {
            let log = dstack_event_log::EventLog::new(certificate.evidence().unwrap().unwrap().event_log).unwrap();
            assert_eq!(log.registers().get(3), quote.fields().rtmr.get(3), "{case:?}");
        }
    }
}

#[test]
fn chain_of_root_application_and_leaf_carries_its_facts() {
    let root = authority(CaProfile::KmsRoot);
    let app_id = AppId::new([7; 20]);
    let app = root.issue_app_ca(&app_id, CertKey::generate().unwrap(), validity()).unwrap();
    let info = AppInfo {
        app_id: serde_bytes::ByteBuf::from(vec![7; 20]),
        compose_hash: serde_bytes::ByteBuf::from(vec![1; 32]),
        instance_id: serde_bytes::ByteBuf::new(),
        device_id: serde_bytes::ByteBuf::from(vec![2; 32]),
        mr_system: serde_bytes::ByteBuf::from(vec![3; 32]),
        mr_aggregated: serde_bytes::ByteBuf::from(vec![4; 32]),
        os_image_hash: serde_bytes::ByteBuf::from(vec![5; 32]),
        key_provider_info: serde_bytes::ByteBuf::from(b"{}".to_vec()),
        init_script_hashes: None,
    };
    let key = CertKey::generate().unwrap();
    let profile = LeafProfile {
        org_name: Some("Org".into()),
        common_name: "leaf".into(),
        subject_alt_names: vec!["a.example".into(), "10.0.2.2".into()],
        usage: Some(usage::APP_CUSTOM.into()),
        app_id: Some(app_id),
        app_info: Some(info.encode()),
        attestation: None,
        server_auth: true,
        client_auth: true,
        nonce: None,
    };

    let leaf = RaTlsCertificate::parse(&app.issue_leaf(&key.spki_der(), &profile, validity()).unwrap()).unwrap();

    assert_eq!((leaf.app_id(), leaf.usage(), leaf.app_info()), (Some(app_id), Some("app:custom"), Some(info)));
    assert_eq!(leaf.spki_der(), key.spki_der());
    assert!(leaf.evidence().unwrap().is_none());
    let authority = RaTlsCertificate::parse(app.certificate_der()).unwrap();
    assert_eq!((authority.app_id(), authority.usage()), (Some(app_id), Some("app:ca")));
    // MessagePack array of nine, the first a bin of 20 bytes.
    assert_eq!(leaf.payload(Extension::AppInfo).unwrap()[..4], [0x99, 0xc4, 20, 7]);
}

#[test]
fn authority_is_stored_and_loaded_only_with_its_own_key() {
    let root = authority(CaProfile::KmsRoot);

    let loaded = CertificateAuthority::load(root.certificate_pem(), CertKey::from_pem(&root.key_pem()).unwrap()).unwrap();

    assert_eq!((loaded.spki_der(), loaded.certificate_der()), (root.spki_der(), root.certificate_der()));
    assert!(CertificateAuthority::load(root.certificate_pem(), CertKey::generate().unwrap()).is_err());
}

#[test]
fn impossible_validity_is_an_error() {
    let make = |not_before, not_after| {
        CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::generate().unwrap(), Validity { not_before, not_after })
    };

    assert!(make(157_766_400, NOW).is_ok());
    assert!(make(NOW, NOW - 1).is_err());
    assert!(make(NOW, u64::MAX).is_err());
}

#[derive(Deserialize)]
struct CsrVectors {
    vectors: Vec<CsrVector>,
}

#[derive(Deserialize)]
struct CsrVector {
    id: String,
    scale_hex: String,
}

#[test]
fn requests_match_the_published_encoding() {
    let vectors: CsrVectors = serde_json::from_slice(&must_read("csr_scale.json")).unwrap();
    for vector in vectors.vectors {
        let bytes = hex::decode(vector.scale_hex).unwrap();

        let request = CertRequest::decode(2, &bytes).unwrap();

        assert_eq!((request.pubkey.as_slice(), request.config.subject.as_str()), (&[1, 2, 3][..], "test.example.com"));
        assert_eq!(request.encode(), bytes, "{}", vector.id);
        assert_eq!(request.evidence().unwrap().quote, if vector.id.ends_with("09") { vec![9] } else { vec![] });
        assert_eq!(CertRequest::verify(2, &bytes, &[]).unwrap_err(), CsrError::PublicKey);
    }
}

#[test]
fn request_is_accepted_only_with_its_own_signature() {
    let (key, other) = (CertKey::generate().unwrap(), CertKey::generate().unwrap());
    let config = CertConfig { subject: "x".into(), not_after: Some(NOW), ..CertConfig::default() };
    for body in [RequestBody::V2 { attestation: vec![0, 0] }, RequestBody::V1 { quote: vec![1], event_log: b"[]".to_vec() }] {
        let config = if matches!(body, RequestBody::V1 { .. }) { CertConfig { not_after: None, ..config.clone() } } else { config.clone() };
        let request = CertRequest { pubkey: key.spki_der(), config, body };
        let version = request.version();
        let (bytes, signature) = request.sign(&key).unwrap();

        assert_eq!(CertRequest::verify(version, &bytes, &signature).unwrap(), request);
        assert_eq!(CertRequest::verify(version, &bytes, &request.sign(&other).unwrap().1).unwrap_err(), CsrError::Signature);
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(CertRequest::verify(version, &changed, &signature).is_err());
        let mut unconfirmed = bytes;
        unconfirmed[3] ^= 1;
        assert_eq!(CertRequest::decode(version, &unconfirmed).unwrap_err(), CsrError::Confirm);
    }
    assert!(CertRequest::decode(3, &[]).is_err());
}

/// Collateral of the platforms of the deployed certificates, and a time at which it and their PCK certificates are valid.
fn must_load_collateral(is_prototype: bool) -> (Endorsements, u64) {
    let attestation = concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/tests/testdata/tdx/collateral/");
    let (path, now) = if is_prototype {
        (format!("{attestation}b0c06f000000-tdx-platform-20260813-e20.json"), 1_787_200_000)
    } else {
        (format!("{DATA}20a06f000000-tdx-platform-20251117-e18.json"), 1_764_600_000)
    };
    (QuoteCollateral::parse_json(&std::fs::read_to_string(path).unwrap()).unwrap().into(), now)
}

#[test]
fn deployed_certificates_verify_under_the_vendors_root_and_prototypes_do_not() {
    let cases: Vec<Case> = serde_json::from_slice(&must_read("cases.json")).unwrap();
    let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
    let mut verdicts = (0, 0);
    for case in cases.iter().filter(|case| case.verdict != "ca") {
        let certificate = RaTlsCertificate::parse(&must_read(&case.file)).unwrap();
        let (endorsements, now) = must_load_collateral(case.verdict == "reject");

        let quote = certificate.payload(Extension::TdxQuote).unwrap();
        let platform = Platform::of_quote(&UnverifiedQuote::parse(quote).unwrap(), verifier.anchors(), now);
        assert!(platform.is_ok(), "{case:?}: {platform:?}");
        match (certificate.verify(&verifier, &endorsements, now, ""), case.verdict.as_str()) {
            (Ok(peer), "accept") => {
                assert_eq!(peer.spki_der(), certificate.spki_der());
                verdicts.0 += 1;
            }
            // Also for their platform and their log; that none binds its key is the test above.
            (Err(_), "reject") => verdicts.1 += 1,
            (other, _) => panic!("{case:?}: {:?}", other.map(|_| ())),
        }
    }
    assert_eq!(verdicts, (14, 4));
}

/// A certificate with an old-style quote and this payload as its log.
fn with_log(payload: &[u8]) -> RaTlsCertificate {
    // DER wants the shortest length.
    let wrapped = |payload: &[u8]| match u16::try_from(payload.len()).unwrap() {
        length @ 0..=0x7f => [&[0x04, length as u8][..], payload].concat(),
        length @ 0x80..=0xff => [&[0x04, 0x81, length as u8][..], payload].concat(),
        length => [&[0x04, 0x82][..], &length.to_be_bytes(), payload].concat(),
    };
    let extension = |arc, payload: &[u8]| rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 1, arc], wrapped(payload));
    let mut params = rcgen::CertificateParams::default();
    params.custom_extensions = vec![extension(1, b"quote"), extension(2, payload)];
    let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
    RaTlsCertificate::parse(&der).unwrap()
}

fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(b"ELGZv1".to_vec(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_logs_are_read_up_to_their_limit() {
    let log = r#"[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"aa"}]"#;
    let events = |payload: &[u8]| with_log(payload).evidence().map(|evidence| evidence.unwrap().event_log);
    let padded = |length: usize| format!("{log}{}", " ".repeat(length - log.len()));

    let plain = events(log.as_bytes()).unwrap();
    assert_eq!((plain.len(), &events(&compressed(log)).unwrap()), (1, &plain));
    assert_eq!(events(&compressed(&padded(16 << 10))).unwrap(), plain);
    for (name, bad) in [
        ("too long", compressed(&padded((16 << 10) + 1))),
        ("bomb", compressed(&padded(40 << 20))),
        ("no gzip", b"ELGZv1[]".to_vec()),
        ("cut", compressed(log)[..30].to_vec()),
    ] {
        assert!(matches!(events(&bad), Err(CertificateError::Evidence { .. })), "{name}");
    }
}

#[test]
fn certificates_are_valid_only_between_their_dates() {
    let root = authority(CaProfile::KmsRoot);
    let certificate = RaTlsCertificate::parse(root.certificate_der()).unwrap();
    let Validity { not_before, not_after } = validity();

    assert!(certificate.check_dates(not_before).is_ok() && certificate.check_dates(not_after).is_ok());
    for now in [not_before - 1, not_after + 1, 0, u64::MAX] {
        assert!(matches!(certificate.check_dates(now), Err(CertificateError::Dates { .. })), "{now}");
    }
}

#[test]
fn duplicated_and_unwrapped_extensions_are_refused() {
    let build = |extensions: &[(u64, Vec<u8>)]| {
        let mut params = rcgen::CertificateParams::default();
        params.custom_extensions = extensions
            .iter()
            .map(|(arc, content)| rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 1, *arc], content.clone()))
            .collect();
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).ok().map(|certificate| certificate.der().to_vec())
    };
    let unwrapped = build(&[(4, b"app:custom".to_vec())]).unwrap();

    assert!(matches!(RaTlsCertificate::parse(&unwrapped).unwrap_err(), CertificateError::Extension { fault: "not an OCTET STRING", .. }));
    let wrapped = || vec![4, 1, b'x'];
    if let Some(twice) = build(&[(4, wrapped()), (4, wrapped())]) {
        assert!(RaTlsCertificate::parse(&twice).is_err());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_certificate_panic(changes in proptest::collection::vec((0_usize..8000, any::<u8>()), 0..12), cut in 0_usize..9000) {
        let mut der = must_read("167757f0b2f8f3f2.der");
        for (at, byte) in changes {
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
        }
        der.truncate(cut);
        if let Ok(certificate) = RaTlsCertificate::parse(&der) {
            let _any_answers = (certificate.evidence(), certificate.app_info(), certificate.app_id());
        }
    }

    #[test]
    fn no_bytes_make_a_request_panic(version in 0_u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _any_answer = CertRequest::decode(version, &bytes).map(|request| request.evidence());
    }
}
