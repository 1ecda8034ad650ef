//! The certificates of AMD's chip keys: what is asked for, how often, and that genuine reports verify with what comes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod bed;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bed::Bed;
use dstack_attestation::{
    Context, Envelope, Policy, TrustAnchors, Verifier,
    sev_snp::{ChipKeyFault, SevSnp},
};
use dstack_ra_tls::{
    EvidenceVerifier, Refusal, VerificationLimits,
    collateral::{ChipKeyClient, FetchError},
};
use dstack_testkit::vendor_services::VendorService;

const MILAN_V2: (&str, u64) = ("120d77b213c8868d", 1_685_733_823);
const MILAN_V3: (&str, u64) = ("a20e02a2e8198894", 1_786_842_304);
const GENOA_V5: (&str, u64) = ("8fd94192d32f9c79", 1_776_729_030);

fn report(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../attestation/tests/testdata/snp/reports/{name}.bin", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn client(service: &VendorService) -> ChipKeyClient {
    ChipKeyClient::new(&service.url).unwrap()
}

/// A report that says it is of another chip; its signature is broken, which nobody looks at before the certificate is here.
fn of_chip(number: u8) -> Vec<u8> {
    let mut report = report(MILAN_V3.0);
    report[0x1a0] = number;
    report
}

#[tokio::test]
async fn genuine_reports_verify_with_what_the_service_has() {
    let service = VendorService::amd().await;
    let client = client(&service);

    for (name, now) in [MILAN_V2, MILAN_V3, GENOA_V5] {
        let report = report(name);
        let endorsements = client.endorsements(&report).await.unwrap();
        let context = Context { anchors: &TrustAnchors::hardware(), endorsements: &endorsements, now };

        assert_eq!(endorsements.certificates.len(), 3, "key, its issuer, root");
        SevSnp.verify_report(&report, &context).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
}

#[tokio::test]
async fn many_callers_share_one_fetch_and_the_cache_answers_the_next() {
    let service = VendorService::amd().await;
    let client = client(&service);

    let callers = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.endorsements(&report(MILAN_V3.0)).await.unwrap() })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    client.endorsements(&report(MILAN_V3.0)).await.unwrap();

    assert_eq!(service.requests(), 3, "{:?}", service.targets());
    assert_eq!((client.counters().fetches, client.counters().hits), (1, 8));
}

#[tokio::test]
async fn each_product_is_asked_for_in_its_own_form() {
    let service = VendorService::start(|_| None).await;
    let client = client(&service);
    let mut turin = vec![0; 1184];
    let mut set = |at: usize, bytes: &[u8]| turin[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &[5]);
    set(0x34, &[1]);
    set(0x180, &[1, 2, 3, 4, 0, 0, 0, 200]);
    set(0x188, &[0x1a, 2, 0]);
    set(0x1a0, &[0xc2; 8]);
    let chip = |report: &[u8], length: usize| hex::encode(&report[0x1a0..0x1a0 + length]);

    for report in [turin.clone(), report(GENOA_V5.0), report(MILAN_V2.0)] {
        assert!(matches!(client.endorsements(&report).await, Err(FetchError::Refused { status: 404, .. })));
    }

    let (genoa, milan) = (chip(&report(GENOA_V5.0), 64), chip(&report(MILAN_V2.0), 64));
    assert_eq!(
        service.targets(),
        [
            format!("/vcek/v1/Turin/{}?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=200", chip(&turin, 8)),
            format!("/vcek/v1/Genoa/{genoa}?blSPL=10&teeSPL=00&snpSPL=27&ucodeSPL=27"),
            // A report of version 2 does not name its CPU.
            format!("/vcek/v1/Milan/{milan}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"),
            format!("/vcek/v1/Genoa/{milan}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"),
        ]
    );
}

#[tokio::test]
async fn nobody_is_asked_about_keys_that_only_others_have() {
    let service = VendorService::amd().await;
    let client = client(&service);
    let mut masked = report(MILAN_V3.0);
    masked[0x1a0..0x1e0].fill(0);
    let mut unknown = report(MILAN_V3.0);
    unknown[0x188] = 0x77;

    let fault = async |report: &[u8]| match client.endorsements(report).await {
        Err(FetchError::ChipKey(fault)) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&report("decdab949afc5906")).await, ChipKeyFault::Loaded);
    assert_eq!(fault(&masked).await, ChipKeyFault::Masked);
    assert!(matches!(fault(&unknown).await, ChipKeyFault::Product { family: 0x77, .. }));
    assert!(matches!(client.endorsements(b"no report").await, Err(FetchError::Report(_))));
    assert_eq!(service.requests(), 0);
}

#[tokio::test]
async fn strangers_cannot_make_it_ask_without_end() {
    let service = VendorService::start(|_| None).await;
    let clock = Arc::new(AtomicU64::new(1_786_842_300));
    let now = Arc::clone(&clock);
    let client = client(&service).with_clock(move || now.load(Ordering::SeqCst));

    for chip in 0..60 {
        assert!(matches!(client.endorsements(&of_chip(chip)).await, Err(FetchError::Refused { .. })), "{chip}");
    }
    assert!(matches!(client.endorsements(&of_chip(60)).await, Err(FetchError::Paced { per_minute: 60 })));
    assert_eq!(service.requests(), 60);

    clock.fetch_add(60, Ordering::SeqCst);
    assert!(matches!(client.endorsements(&of_chip(60)).await, Err(FetchError::Refused { .. })), "the next minute");
}

#[tokio::test]
async fn answers_that_are_no_papers_are_named() {
    let of_body = async |part: &'static str, body: Vec<u8>| {
        let genuine = VendorService::amd().await;
        let inner = dstack_rpc::Client::new(dstack_rpc::Endpoint::parse(&genuine.url).unwrap());
        let key = report(MILAN_V3.0);
        ChipKeyClient::new(&genuine.url).unwrap().endorsements(&key).await.unwrap();
        let mut answers = Vec::new();
        for target in genuine.targets() {
            let answer = inner.get(&target).await.unwrap();
            answers.push((target, answer.status.is_success().then_some(answer.body)));
        }
        let service = VendorService::start(move |target| {
            if target.contains(part) {
                return Some((None, body.clone()));
            }
            let (_, found) = answers.iter().find(|(known, _)| known == target)?;
            Some((None, found.clone()?))
        })
        .await;
        client(&service).endorsements(&key).await.unwrap_err()
    };

    let page = b"<!doctype html>".to_vec();
    for (part, named) in [("blSPL", "certificate"), ("cert_chain", "certificate chain"), ("crl", "revocation list")] {
        let error = of_body(part, page.clone()).await;
        assert!(matches!(error, FetchError::Malformed { part, .. } if part == named), "{part}: {error}");
    }
    let endless = of_body("crl", vec![0x30; 2 << 20]).await;
    assert!(matches!(endless, FetchError::Unreachable { .. }), "{endless}");
}

/// A genuine guest whose evidence does not carry the certificate of its chip's key.
#[tokio::test]
async fn a_guest_without_its_key_is_believed_once_the_key_is_fetched() {
    let bytes = include_bytes!("../../attestation/tests/testdata/snp/dstack-vm.envelope.bin");
    let mut envelope = Envelope::decode(bytes).unwrap();
    let dstack_attestation::PlatformEvidence::SevSnp { certificates, .. } = &mut envelope.evidence else { panic!("not of SEV-SNP") };
    certificates.clear();
    let (bytes, report_data) = (envelope.encode(), envelope.report_data);
    let service = VendorService::amd().await;
    let bed = Bed::start().await;
    let verification = |chip_keys| {
        let verifier = Verifier::new(TrustAnchors::hardware(), Policy::default());
        EvidenceVerifier::new(verifier, bed.client(), VerificationLimits::default()).accepting_snp_guests(chip_keys)
    };

    let alone = verification(None).of_envelope(&bytes, &report_data, bed::NOW).await.unwrap_err();
    assert!(matches!(alone, Refusal::Evidence(_)), "{alone}");
    let opened = verification(Some(client(&service)));
    let verified = opened.of_envelope(&bytes, &report_data, bed::NOW).await.unwrap();
    let again = opened.of_envelope(&bytes, &report_data, bed::NOW + 1).await.unwrap();

    assert!(Arc::ptr_eq(&verified, &again));
    assert_eq!((service.requests(), bed.requests()), (3, 0));
    let down = verification(Some(ChipKeyClient::new("http://127.0.0.1:1").unwrap()));
    let refusal = down.of_envelope(&bytes, &report_data, bed::NOW).await.unwrap_err();
    assert!(refusal.is_undecided() && matches!(refusal, Refusal::Collateral(FetchError::Unreachable { .. })), "{refusal}");
}
