//! Certificate chains: one thing wrong at a time, everything else right.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use base64::Engine as _;
use dstack_api::verifier::VerifyResponse;
use dstack_attestation::Attestation;
use dstack_event_log::Event;
use dstack_ra_tls::ra_tls_report_data;
use dstack_verifier::{Refusal, Verification, certificate};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use testbed::{Bed, Image, NOW, Web, outcome, verification};
use time::OffsetDateTime;

/// What a test may change of the leaf and its chain.
struct Chain {
    names: Vec<String>,
    purposes: Vec<ExtendedKeyUsagePurpose>,
    usages: Vec<KeyUsagePurpose>,
    lifetime: i64,
    has_evidence: bool,
    is_bound: bool,
    is_signed_by_root: bool,
    root_usages: Vec<KeyUsagePurpose>,
}

type Change = fn(&mut Chain);

impl Default for Chain {
    fn default() -> Self {
        Self {
            names: vec!["app.example".to_owned()],
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth],
            usages: vec![KeyUsagePurpose::DigitalSignature],
            lifetime: 3600,
            has_evidence: true,
            is_bound: true,
            is_signed_by_root: true,
            root_usages: vec![KeyUsagePurpose::KeyCertSign],
        }
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn dated(mut params: CertificateParams, lifetime: i64) -> CertificateParams {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(i64::try_from(NOW).unwrap() + seconds).unwrap();
    (params.not_before, params.not_after) = (at(-60), at(lifetime));
    params
}

fn authority(chain: &Chain) -> (Issuer<'static, KeyPair>, Vec<u8>) {
    let mut params = dated(CertificateParams::default(), 86_400);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages.clone_from(&chain.root_usages);
    let key = key();
    let der = params.self_signed(&key).unwrap().der().clone();
    (Issuer::from_ca_cert_der(&der, key).unwrap(), der.to_vec())
}

/// DER OCTET STRING.
fn wrapped(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x04, 0x84][..], &length, payload].concat()
}

impl Chain {
    fn pem(&self, bed: &Bed) -> String {
        let (leaf_key, (root, root_der)) = (key(), authority(self));
        let bound = if self.is_bound { leaf_key.subject_public_key_info() } else { key().subject_public_key_info() };
        let mut params = dated(CertificateParams::new(self.names.clone()).unwrap(), self.lifetime);
        params.key_usages.clone_from(&self.usages);
        params.extended_key_usages.clone_from(&self.purposes);
        if self.has_evidence {
            let payload = wrapped(&evidence(bed, &bound));
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 1, 8], payload)];
        }
        let issuer = if self.is_signed_by_root { root } else { authority(self).0 };
        let leaf = params.signed_by(&leaf_key, &issuer).unwrap().der().to_vec();
        [leaf, root_der].iter().map(|der| pem(der)).collect()
    }
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn evidence(bed: &Bed, spki: &[u8]) -> Vec<u8> {
    let (image, report_data) = (Image::documented(), ra_tls_report_data(spki));
    let (quote, event_log) = bed.evidence(&image, report_data, |_| ());
    let runtime_events = event_log.iter().filter_map(Event::as_runtime).collect();
    let config = serde_json::json!({ "vm_config": serde_json::to_string(&image.vm_config).unwrap() }).to_string();
    Attestation { quote, event_log, runtime_events, report_data, config }.stripped().encode()
}

async fn judge(verification: &Verification, bed: &Bed, change: impl FnOnce(&mut Chain)) -> Result<VerifyResponse, Refusal> {
    let mut chain = Chain::default();
    change(&mut chain);
    certificate::verify(verification, chain.pem(bed).as_bytes()).await
}

#[tokio::test]
async fn a_chain_is_judged_by_x509_and_by_its_evidence() {
    let bed = Bed::new();
    let pccs = Web::pccs(bed.collateral()).await;
    let verification = verification(bed.settings(&pccs, None), NOW);

    let good = judge(&verification, &bed, |_| ()).await.unwrap();
    assert!(good.is_valid, "{good:#?}");
    assert_eq!((good.verdict.as_str(), outcome(&good, "certificate-names")), ("SIMULATED", "pass"));
    assert!(good.checks.iter().any(|line| line.detail == "app.example"));

    let cases: [(&str, Change, &str); 6] = [
        ("another issuer", |chain| chain.is_signed_by_root = false, "certificate-chain"),
        ("expired", |chain| chain.lifetime = -1, "certificate-chain"),
        ("key that may not sign", |chain| chain.usages = vec![KeyUsagePurpose::KeyAgreement], "certificate-key-usage"),
        ("issuer that may not issue", |chain| chain.root_usages = vec![KeyUsagePurpose::CrlSign], "certificate-key-usage"),
        ("code signing", |chain| chain.purposes = vec![ExtendedKeyUsagePurpose::CodeSigning], "certificate-extended-key-usage"),
        ("evidence of another key", |chain| chain.is_bound = false, "report-data"),
    ];
    for (name, change, check) in cases {
        let answer = judge(&verification, &bed, change).await.unwrap();

        assert!(!answer.is_valid && answer.reason.is_some(), "{name}: {answer:#?}");
        assert_eq!((answer.verdict.as_str(), outcome(&answer, check)), ("NOT VERIFIED", "fail"), "{name}: {answer:#?}");
    }
    let open = judge(&verification, &bed, |chain| (chain.names, chain.purposes) = (Vec::new(), Vec::new())).await.unwrap();
    assert!(open.is_valid && outcome(&open, "certificate-names") == "skipped", "{open:#?}");
}

#[tokio::test]
async fn chains_without_evidence_get_no_verdict() {
    let bed = Bed::new();
    let pccs = Web::pccs(bed.collateral()).await;
    let verification = verification(bed.settings(&pccs, None), NOW);

    assert!(matches!(judge(&verification, &bed, |chain| chain.has_evidence = false).await, Err(Refusal::NoEvidence(_))));
    for bytes in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x03\x02\x01\x00"] {
        assert!(matches!(certificate::verify(&verification, bytes).await, Err(Refusal::NoEvidence(_))), "{bytes:02x?}");
    }
}
