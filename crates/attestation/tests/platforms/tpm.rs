//! Genuine quotes: two of Google's cloud with the TDX quote they vouch for, one of Azure.

use std::sync::LazyLock;

use dstack_attestation::{
    Context, Endorsements, Fault, Link, PlatformEvidence, Refusal, TrustAnchors, Vendor,
    tpm::{GCP_FIRMWARE_PCR0, GcpBoot, GcpExpectation, GcpFault, PcrValue, Quoted, Tpm, TpmQuote, VerifiedTpmQuote, check_gcp},
};
use dstack_event_log::{EventVersion, HashAlgorithm, RuntimeEvent};
use rcgen::SubjectPublicKeyInfo;
use scale::{Decode as _, Encode as _};
use serde::Deserialize;

use crate::pki::{NOW, Party, at, bit_flips, must_read, trusting};

/// Computed by an independent program from the quoted registers.
const MR_AGGREGATED: &str = "45945647b298002fab5255ac6d0fc84be25122a385fb05d51be6d1bd6483fc38";
const MR_SYSTEM_BOOT_TIME: &str = "a6742232ea9f545567b1f387a6dfca413066032149f9f416f6624603cd1b7251";
const MR_SYSTEM_KMS: &str = "bea9f3a899da839e375d153c09777520db5105c0dab6313f6ef5e0bd565f7460";

/// Contents of the envelope of 2025, in which both quotes are optional.
struct Envelope {
    tdx_quote: Vec<u8>,
    tpm: TpmQuote,
    events: Vec<RuntimeEvent>,
}

fn envelope(number: u8) -> Envelope {
    type TdxEvent = (u32, u32, Vec<u8>, String, Vec<u8>);
    let bytes = must_read(&format!("tpm/gcp-attestation-{number}.bin"));
    let mut input = &bytes[2..];
    let (tdx_quote, _) = <Option<(Vec<u8>, Vec<TdxEvent>)>>::decode(&mut input).unwrap().unwrap();
    assert_eq!(u8::decode(&mut input), Ok(1));
    let tpm = TpmQuote::decode_scale(&mut input).unwrap();
    let (events, _, _) = <(Vec<(String, Vec<u8>)>, [u8; 64], String)>::decode(&mut input).unwrap();
    assert!(input.is_empty());
    let event = |(name, payload): (String, Vec<u8>)| RuntimeEvent::new(name, payload, EventVersion::V1);
    Envelope { tdx_quote, tpm, events: events.into_iter().map(event).collect() }
}

/// Third event of PCR 2 in both quotes.
static UKI: LazyLock<[u8; 32]> =
    LazyLock::new(|| hex::decode("a413e6491dfbb659f91474cd684427c9c73cccdf9d7a9aad988f5466b0c107df").unwrap().try_into().unwrap());

fn verify(quote: &TpmQuote) -> Result<VerifiedTpmQuote, Refusal> {
    at(NOW, &TrustAnchors::hardware(), |context| Tpm.verify_quote(quote, context))
}

fn check<'a>(envelope: &'a Envelope, change: impl FnOnce(&mut GcpExpectation<'a>)) -> Result<GcpBoot, GcpFault> {
    let mut expected = GcpExpectation { tdx_quote: &envelope.tdx_quote, uki_authenticode: &UKI, runtime_events: &envelope.events };
    change(&mut expected);
    check_gcp(&verify(&envelope.tpm).unwrap(), &expected)
}

#[test]
fn the_quote_of_googles_cloud_is_genuine_and_of_its_td() {
    let envelope = envelope(1);

    let verified = verify(&envelope.tpm).unwrap();

    let platform = verified.platform();
    assert_eq!(verified.vendor(), Vendor::Google);
    assert!(platform.anchor().is_built_in());
    assert_eq!(platform.report_data(), verified.quoted().qualifying_data);
    assert_eq!(platform.register("pcr0"), Some(GCP_FIRMWARE_PCR0.as_slice()));
    assert!(platform.passed().iter().any(|passed| passed.link == Link::EventLog && passed.found.ends_with("PCR 0, 2")));
    assert!(platform.not_checked().iter().any(|missed| missed.why.ends_with("PCR 14")));
    assert!(check(&envelope, |_| ()).is_ok());
}

#[test]
fn values_and_log_entries_are_bounded_before_they_are_kept() {
    type Values = Vec<(u32, String, Vec<u8>)>;
    let is_read = |values: usize, events: usize| {
        let values: Values = vec![(0, "sha256".to_owned(), Vec::new()); values];
        let wire = (Vec::<u8>::new(), Vec::<u8>::new(), values, Vec::<u8>::new(), 1_u8, vec![(0_u32, Vec::<u8>::new()); events]).encode();
        TpmQuote::decode_scale(&mut wire.as_slice()).is_ok()
    };

    assert_eq!([is_read(96, 16_384), is_read(97, 0), is_read(0, 16_385)], [true, false, false]);
}

#[test]
fn each_bank_has_its_name_on_the_wire() {
    let bytes = must_read("tpm/gcp-attestation-1.bin");
    let at = bytes.windows(6).position(|window| window == b"sha256").unwrap();
    let first_bank = |name: &[u8; 6]| {
        let renamed = [&bytes[..at], name, &bytes[at + 6..]].concat();
        let PlatformEvidence::GcpTdx { tpm_quote, .. } = dstack_attestation::Envelope::decode(&renamed).ok()?.evidence else { return None };
        TpmQuote::decode_scale(&mut tpm_quote.as_slice()).ok().map(|quote| quote.pcrs[0].algorithm)
    };

    let banks = [b"sha256", b"sha384", b"sha512", b"sha3_2"].map(first_bank);

    assert_eq!(banks, [Some(HashAlgorithm::Sha256), Some(HashAlgorithm::Sha384), Some(HashAlgorithm::Sha512), None]);
}

/// Google has several authorities of one name. The one of the second quote is not public text, so whoever has such a quote must give it.
#[test]
fn an_authority_that_is_not_at_hand_is_named() {
    let refusal = verify(&envelope(2).tpm).unwrap_err();

    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::Missing));
    assert!(refusal.detail.contains("EK/AK CA Intermediate"), "{refusal}");
}

#[test]
fn digests_of_the_machine_are_those_computed_elsewhere() {
    let boot = check(&envelope(1), |_| ()).unwrap();
    let hash = hex::decode("455edaf063160da781efaf262e5cb12e76be20c22a033ae16bfd6f0b8260a2e0").unwrap().try_into().unwrap();

    assert_eq!(hex::encode(boot.mr_aggregated()), MR_AGGREGATED);
    assert_eq!(hex::encode(GcpBoot::mr_system(&hash, None)), MR_SYSTEM_BOOT_TIME);
    assert_eq!(hex::encode(GcpBoot::mr_system(&hash, Some(b"kms"))), MR_SYSTEM_KMS);
}

#[test]
fn rejects_another_tdx_quote_image_or_event() {
    let envelope = envelope(1);
    let mut other_quote = envelope.tdx_quote.clone();
    other_quote[100] ^= 1;
    let unpadded = &envelope.tdx_quote[..envelope.tdx_quote.len() - 1];
    let mut other_image = *UKI;
    other_image[0] ^= 1;
    let mut other_event = envelope.events.clone();
    other_event[1].payload[0] ^= 1;

    assert!(matches!(check(&envelope, |expected| expected.tdx_quote = &other_quote), Err(GcpFault::OtherQuote { .. })));
    assert!(matches!(check(&envelope, |expected| expected.tdx_quote = unpadded), Err(GcpFault::OtherQuote { .. })));
    assert!(matches!(check(&envelope, |expected| expected.uki_authenticode = &other_image), Err(GcpFault::OtherImage { .. })));
    assert!(matches!(check(&envelope, |expected| expected.runtime_events = &other_event), Err(GcpFault::OtherEvents { .. })));
    assert!(matches!(check(&envelope, |expected| expected.runtime_events = &[]), Err(GcpFault::OtherEvents { .. })));
}

#[test]
fn rejects_a_log_that_does_not_show_the_image() {
    let mut envelope = envelope(1);
    envelope.tpm.events.clear();

    assert_eq!(check(&envelope, |_| ()), Err(GcpFault::NoImageEvent));
}

#[test]
fn rejects_changed_parts_of_a_genuine_quote() {
    let genuine = envelope(1).tpm;
    let fault = |change: &dyn Fn(&mut TpmQuote)| {
        let mut quote = genuine.clone();
        change(&mut quote);
        let refusal = verify(&quote).unwrap_err();
        (refusal.link, refusal.fault)
    };
    let last = genuine.message.len() - 1;

    assert_eq!(fault(&|quote| quote.message[last] ^= 1), (Link::Signature, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.signature[20] ^= 1), (Link::Signature, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.pcrs[1].value[0] ^= 1), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.pcrs[1].pcr = 3), (Link::EventLog, Fault::Missing));
    assert_eq!(fault(&|quote| quote.pcrs[1].algorithm = HashAlgorithm::Sha384), (Link::EventLog, Fault::Missing));
    assert_eq!(fault(&|quote| drop(quote.pcrs.pop())), (Link::EventLog, Fault::Missing));
    assert_eq!(fault(&|quote| quote.pcrs.push(quote.pcrs[0].clone())), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.events[0].digest[0] ^= 1), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.events[0].pcr = 24), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.events[0].digest.push(0)), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| drop(quote.events.remove(0))), (Link::EventLog, Fault::Invalid));
    assert_eq!(fault(&|quote| quote.certificate[600] ^= 1).0, Link::CertificateChain);
    assert_eq!(fault(&|quote| quote.certificate.push(0)), (Link::CertificateChain, Fault::Malformed));
    assert_eq!(fault(&|quote| quote.certificate.clear()), (Link::CertificateChain, Fault::Malformed));
}

#[test]
fn rejects_genuine_quotes_under_other_roots_or_too_early() {
    let genuine = envelope(1).tpm;
    let stranger = Party::root("EK/AK CA Root");

    let refusal = at(NOW, &trusting(Vendor::Google, &stranger.der), |context| Tpm.verify_quote(&genuine, context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::Missing));

    let refusal = at(1_700_000_000, &TrustAnchors::hardware(), |context| Tpm.verify_quote(&genuine, context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::NotYetValid));
}

#[test]
fn no_truncation_and_no_flipped_bit_is_taken_for_the_quote() {
    let genuine = envelope(1).tpm;

    for length in 0..genuine.message.len() {
        assert!(Quoted::parse(&genuine.message[..length]).is_err(), "{length} bytes");
    }
    for (position, message) in bit_flips(&genuine.message, 23) {
        assert!(verify(&TpmQuote { message, ..genuine.clone() }).is_err(), "message, byte {position}");
    }
    for (position, signature) in bit_flips(&genuine.signature, 11) {
        assert!(verify(&TpmQuote { signature, ..genuine.clone() }).is_err(), "signature, byte {position}");
    }
}

#[test]
fn no_truncation_of_an_envelope_gives_a_quote() {
    let bytes = must_read("tpm/gcp-attestation-1.bin");
    let start = 34_772;
    let quote = &bytes[start..38_039];

    assert!(TpmQuote::decode_scale(&mut &*quote).is_ok());
    for length in (0..quote.len()).step_by(7) {
        assert!(TpmQuote::decode_scale(&mut &quote[..length]).is_err(), "{length} bytes");
    }
    let mut other_cloud = quote.to_vec();
    other_cloud[36_446 - start] = 2;
    assert!(TpmQuote::decode_scale(&mut &*other_cloud).is_err());
}

#[derive(Deserialize)]
struct AzureQuote {
    message: String,
    rsassa_sha256: String,
    pcrs_sha256: Vec<String>,
    public_key_pem: String,
}

/// The public quote comes without its key's certificate, so a cloud of ours certifies the key.
#[test]
fn a_quote_of_azure_holds_under_a_certificate_of_its_key() {
    let azure: AzureQuote = serde_json::from_slice(&must_read("tpm/azure-quote.json")).unwrap();
    let root = Party::root("cloud");
    let key = SubjectPublicKeyInfo::from_pem(&azure.public_key_pem).unwrap();
    let signature = hex::decode(&azure.rsassa_sha256).unwrap();
    let value = |(pcr, value): (usize, &String)| PcrValue {
        pcr: u32::try_from(pcr).unwrap(),
        algorithm: HashAlgorithm::Sha256,
        value: hex::decode(value).unwrap(),
    };
    let quote = TpmQuote {
        message: hex::decode(&azure.message).unwrap(),
        signature: [&[0, 0x14, 0, 0x0b, 1, 0], signature.as_slice()].concat(),
        pcrs: azure.pcrs_sha256.iter().enumerate().map(value).collect(),
        certificate: root.certify("vm", &key),
        events: Vec::new(),
    };
    let anchors = trusting(Vendor::Microsoft, &root.der);

    let verified = at(NOW, &anchors, |context| Tpm.verify_quote(&quote, context)).unwrap();

    assert_eq!(verified.vendor(), Vendor::Microsoft);
    assert_eq!(verified.platform().report_data(), b"challenge");
    assert_eq!(verified.platform().registers().len(), 24);
    let expected = GcpExpectation { tdx_quote: &[], uki_authenticode: &[0; 32], runtime_events: &[] };
    assert_eq!(check_gcp(&verified, &expected), Err(GcpFault::OtherCloud { vendor: Vendor::Microsoft }));

    let mut wrong = quote.clone();
    wrong.signature[100] ^= 1;
    let refusal = at(NOW, &anchors, |context| Tpm.verify_quote(&wrong, context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::Signature, Fault::Invalid));
}

#[test]
fn issuers_may_come_from_the_caller() {
    let root = Party::root("cloud");
    let authority = root.authority("issuer", |_| ());
    let mut quote = envelope(1).tpm;
    quote.certificate = authority.leaf_p256("vm").der;
    let anchors = trusting(Vendor::Google, &root.der);
    let verify = |certificates: Vec<Vec<u8>>| {
        let endorsements = Endorsements { certificates, ..Endorsements::default() };
        Tpm.verify_quote(&quote, &Context { anchors: &anchors, endorsements: &endorsements, now: NOW }).unwrap_err()
    };

    assert_eq!(verify(Vec::new()).fault, Fault::Missing);
    let refusal = verify(vec![authority.der.clone()]);
    assert_eq!((refusal.link, refusal.fault), (Link::Signature, Fault::Invalid), "the chain holds, the key is another");
}
