//! Certificates of running deployments, and ones issued here.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::UnverifiedQuote;
use dstack_manifest::AppId;
use dstack_ra_tls::{
    AppInfo, CaProfile, CertConfig, CertKey, CertRequest, CertificateAuthority, CertificateError, CsrError, Extension, LeafProfile,
    RaTlsCertificate, RequestBody, Validity, ra_tls_report_data, usage,
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
