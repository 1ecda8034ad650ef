//! Documents of a vendor of our own, one change each.

use ciborium::{Value, cbor};
use coset::{CborSerializable as _, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
use dstack_attestation::{
    Fault, Link, Refusal, TrustAnchors, Vendor,
    nitro::{NitroEnclave, NitroTpm, VerifiedDocument},
};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyUsagePurpose, date_time_ymd};

use crate::pki::{NOW, Party, at, trusting};

/// A cloud with its chain of keys.
pub(crate) struct Cloud {
    root: Party,
    zone: Party,
    leaf: Party,
}

/// The fields of a document, in any order.
pub(crate) type Fields = Vec<(Value, Value)>;

impl Cloud {
    pub(crate) fn new() -> Self {
        Self::with(|_| (), |_| (), |_| ())
    }

    fn with(
        root: impl FnOnce(&mut CertificateParams),
        zone: impl FnOnce(&mut CertificateParams),
        leaf: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let root = Party::root_with("cloud", root);
        let zone = root.authority("zone", zone);
        let leaf = zone.leaf("host", leaf);
        Self { root, zone, leaf }
    }

    pub(crate) fn fields(&self, registers: &str, pcrs: &[(u8, [u8; 48])]) -> Fields {
        let pcrs = pcrs.iter().map(|(index, value)| (Value::from(*index), Value::from(value.to_vec()))).collect();
        let bundle = [&self.root, &self.zone].map(|party| Value::from(party.der.clone()));
        vec![
            ("module_id".into(), "i-0123456789abcdef0-enc0011223344556677".into()),
            ("digest".into(), "SHA384".into()),
            ("timestamp".into(), (NOW * 1000 + 7).into()),
            (registers.into(), Value::Map(pcrs)),
            ("certificate".into(), self.leaf.der.clone().into()),
            ("cabundle".into(), Value::Array(bundle.to_vec())),
            ("public_key".into(), Value::Null),
            ("user_data".into(), vec![7; 64].into()),
            ("nonce".into(), vec![9; 16].into()),
        ]
    }

    pub(crate) fn sign(&self, fields: &Fields) -> CoseSign1 {
        self.sign_as(fields, iana::Algorithm::ES384)
    }

    fn sign_as(&self, fields: &Fields, algorithm: iana::Algorithm) -> CoseSign1 {
        let mut payload = Vec::new();
        ciborium::into_writer(&Value::Map(fields.clone()), &mut payload).unwrap();
        CoseSign1Builder::new()
            .protected(HeaderBuilder::new().algorithm(algorithm).build())
            .payload(payload)
            .create_signature(&[], |message| self.leaf.sign(message))
            .build()
    }

    fn verify_bytes(&self, bytes: &[u8]) -> Result<VerifiedDocument, Refusal> {
        at(NOW, &trusting(Vendor::Aws, &self.root.der), |context| NitroEnclave.verify_document(bytes, context))
    }

    fn verify(&self, fields: &Fields) -> Result<VerifiedDocument, Refusal> {
        self.verify_bytes(&self.sign(fields).to_vec().unwrap())
    }

    pub(crate) fn verify_instance(&self, fields: &Fields) -> Result<VerifiedDocument, Refusal> {
        let bytes = self.sign(fields).to_vec().unwrap();
        at(NOW, &trusting(Vendor::Aws, &self.root.der), |context| NitroTpm.verify_document(&bytes, context))
    }
}

fn enclave(cloud: &Cloud) -> Fields {
    cloud.fields("pcrs", &[(0, [1; 48]), (1, [2; 48]), (2, [3; 48])])
}

fn set(fields: &mut Fields, key: &str, value: impl Into<Value>) {
    fields.iter_mut().find(|(known, _)| known.as_text() == Some(key)).unwrap().1 = value.into();
}

fn fault_of(result: Result<VerifiedDocument, Refusal>) -> (Link, Fault) {
    let refusal = result.unwrap_err();
    (refusal.link, refusal.fault)
}

#[test]
fn accepts_a_document_of_a_chosen_root() {
    let cloud = Cloud::new();

    let verified = cloud.verify(&enclave(&cloud)).unwrap();

    assert_eq!(verified.platform().debug(), Some(false));
    assert_eq!(verified.document().instance_id(), "i-0123456789abcdef0");
    assert_eq!(verified.platform().report_data(), [7; 64]);
    assert_eq!(verified.platform().valid_until(), Some(1_798_761_600));
}

#[test]
fn zero_registers_are_debug_mode() {
    let cloud = Cloud::new();

    let debug = |pcrs: &[(u8, [u8; 48])]| cloud.verify(&cloud.fields("pcrs", pcrs)).unwrap().platform().debug();

    assert_eq!(debug(&[(0, [0; 48]), (1, [0; 48]), (2, [0; 48])]), Some(true));
    assert_eq!(debug(&[(1, [1; 48])]), Some(true), "nothing says what the image is");
    let mut one_bit = [0; 48];
    one_bit[47] = 1;
    assert_eq!(debug(&[(0, one_bit)]), Some(false));
}

#[test]
fn rejects_fields_that_break_their_bounds() {
    let cloud = Cloud::new();
    let pcrs = |index: u8, length: usize| Value::Map(vec![(index.into(), vec![1; length].into())]);
    let accepted: [(&str, Value); 10] = [
        ("module_id", "m".repeat(256).into()),
        ("timestamp", 1.into()),
        ("pcrs", pcrs(31, 48)),
        ("public_key", vec![1; 1].into()),
        ("public_key", vec![1; 1024].into()),
        ("user_data", Value::Bytes(Vec::new())),
        ("user_data", vec![1; 512].into()),
        ("nonce", Value::Bytes(Vec::new())),
        ("nonce", vec![1; 512].into()),
        ("nonce", Value::Null),
    ];
    let refused: [(&str, Value); 22] = [
        ("module_id", "".into()),
        ("module_id", "m".repeat(257).into()),
        ("module_id", Value::Null),
        ("digest", "SHA256".into()),
        ("digest", 384.into()),
        ("timestamp", 0.into()),
        ("timestamp", (-1).into()),
        ("pcrs", Value::Map(Vec::new())),
        ("pcrs", pcrs(32, 48)),
        ("pcrs", pcrs(0, 47)),
        ("pcrs", pcrs(0, 32)),
        ("pcrs", Value::Map(vec![(0.into(), vec![1; 48].into()), (0.into(), vec![1; 48].into())])),
        ("certificate", Value::Bytes(Vec::new())),
        ("certificate", vec![0x30; 1025].into()),
        ("cabundle", Value::Array(Vec::new())),
        ("cabundle", cbor!([[]]).unwrap()),
        ("cabundle", Value::Array(vec![Value::from(vec![0x30; 1025])])),
        ("cabundle", Value::Array(vec![Value::from(vec![0x30; 10]); 17])),
        ("public_key", Value::Bytes(Vec::new())),
        ("public_key", vec![1; 1025].into()),
        ("user_data", vec![1; 513].into()),
        ("nonce", vec![1; 513].into()),
    ];

    for (key, value) in accepted {
        let mut fields = enclave(&cloud);
        set(&mut fields, key, value);
        cloud.verify(&fields).unwrap_or_else(|refusal| panic!("{key}: {refusal}"));
    }
    for (number, (key, value)) in refused.into_iter().enumerate() {
        let mut fields = enclave(&cloud);
        set(&mut fields, key, value);
        assert_eq!(fault_of(cloud.verify(&fields)), (Link::Format, Fault::Malformed), "{key}, number {number}");
    }
}

#[test]
fn rejects_documents_without_a_field_or_with_one_twice() {
    let cloud = Cloud::new();

    for missing in 0..6 {
        let mut fields = enclave(&cloud);
        fields.remove(missing);
        assert_eq!(fault_of(cloud.verify(&fields)), (Link::Format, Fault::Malformed), "field {missing}");
    }
    for twice in 0..9 {
        let mut fields = enclave(&cloud);
        fields.push(fields[twice].clone());
        assert_eq!(fault_of(cloud.verify(&fields)), (Link::Format, Fault::Malformed), "field {twice}");
    }
}

#[test]
fn rejects_the_registers_of_both_kinds() {
    let cloud = Cloud::new();
    let mut fields = enclave(&cloud);
    fields.push(("nitrotpm_pcrs".into(), fields[3].1.clone()));

    assert_eq!(fault_of(cloud.verify(&fields)), (Link::Format, Fault::Malformed));
    assert_eq!(fault_of(cloud.verify(&cloud.fields("nitrotpm_pcrs", &[(4, [1; 48])]))), (Link::Format, Fault::Malformed));
    assert_eq!(fault_of(cloud.verify_instance(&enclave(&cloud))), (Link::Format, Fault::Malformed));
    let kind = |verified: VerifiedDocument| verified.platform().passed()[0].found.clone();
    assert!(kind(cloud.verify(&enclave(&cloud)).unwrap()).starts_with("document of enclave i-"));
    assert!(kind(cloud.verify_instance(&cloud.fields("nitrotpm_pcrs", &[(4, [1; 48])])).unwrap()).starts_with("document of NitroTPM i-"));
}

#[test]
fn ignores_fields_of_later_versions() {
    let cloud = Cloud::new();
    let mut fields = enclave(&cloud);
    fields.push(("later".into(), 1.into()));

    assert!(cloud.verify(&fields).is_ok());
}

#[test]
fn the_tag_of_the_structure_may_be_there() {
    let cloud = Cloud::new();

    let tagged = cloud.sign(&enclave(&cloud)).to_tagged_vec().unwrap();

    assert!(cloud.verify_bytes(&tagged).is_ok());
}

#[test]
fn rejects_headers_that_are_not_signed_or_not_understood() {
    let cloud = Cloud::new();
    let fields = enclave(&cloud);
    let mut unprotected = cloud.sign(&fields);
    unprotected.unprotected.key_id = vec![1];
    let mut detached = cloud.sign(&fields);
    detached.payload = None;
    let header = HeaderBuilder::new().algorithm(iana::Algorithm::ES384).add_critical(iana::HeaderParameter::ContentType).build();
    let critical = CoseSign1Builder::new()
        .protected(header)
        .payload(cloud.sign(&fields).payload.unwrap())
        .create_signature(&[], |message| cloud.leaf.sign(message))
        .build();

    for structure in [unprotected, detached, critical, cloud.sign_as(&fields, iana::Algorithm::ES512)] {
        assert_eq!(fault_of(cloud.verify_bytes(&structure.to_vec().unwrap())), (Link::Format, Fault::Malformed));
    }
    let weaker = cloud.sign_as(&fields, iana::Algorithm::ES256).to_vec().unwrap();
    assert_eq!(fault_of(cloud.verify_bytes(&weaker)), (Link::Signature, Fault::Invalid));
}

#[test]
fn rejects_documents_signed_by_another_key() {
    let (cloud, other) = (Cloud::new(), Cloud::new());
    let mut document = cloud.sign(&enclave(&cloud));
    document.signature = other.sign(&enclave(&cloud)).signature;

    assert_eq!(fault_of(cloud.verify_bytes(&document.to_vec().unwrap())), (Link::Signature, Fault::Invalid));
}

#[test]
fn rejects_signatures_of_other_lengths() {
    let cloud = Cloud::new();
    for length in [0, 95, 97] {
        let mut document = cloud.sign(&enclave(&cloud));
        document.signature.resize(length, 0);

        assert_eq!(fault_of(cloud.verify_bytes(&document.to_vec().unwrap())), (Link::Signature, Fault::Invalid), "{length}");
    }
}

#[test]
fn rejects_chains_whose_certificates_may_not_do_what_they_do() {
    type Change = fn(&mut CertificateParams);
    let same: Change = |_| ();
    let unknown: Change = |params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    };
    let expired: Change = |params| params.not_after = date_time_ymd(2025, 12, 31);
    let early: Change = |params| params.not_before = date_time_ymd(2026, 12, 31);
    let no_authority: Change = |params| params.is_ca = IsCa::ExplicitNoCa;
    let may_not_sign: Change = |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let shallow: Change = |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority: Change = |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let only_certificates: Change = |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cases: [(&str, Change, Change, Change, Fault); 13] = [
        ("root expired", expired, same, same, Fault::Expired),
        ("root from the future", early, same, same, Fault::NotYetValid),
        ("root of no depth", shallow, same, same, Fault::Invalid),
        ("root with an unknown critical extension", unknown, same, same, Fault::Invalid),
        ("zone expired", same, expired, same, Fault::Expired),
        ("zone from the future", same, early, same, Fault::NotYetValid),
        ("zone is no authority", same, no_authority, same, Fault::Invalid),
        ("zone may not sign certificates", same, may_not_sign, same, Fault::Invalid),
        ("zone with an unknown critical extension", same, unknown, same, Fault::Invalid),
        ("leaf expired", same, same, expired, Fault::Expired),
        ("leaf is an authority", same, same, authority, Fault::Invalid),
        ("leaf may only sign certificates", same, same, only_certificates, Fault::Invalid),
        ("leaf with an unknown critical extension", same, same, unknown, Fault::Invalid),
    ];

    for (name, root, zone, leaf, fault) in cases {
        let cloud = Cloud::with(root, zone, leaf);
        assert_eq!(fault_of(cloud.verify(&enclave(&cloud))), (Link::CertificateChain, fault), "{name}");
    }
    let deep_enough: Change = |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let cloud = Cloud::with(deep_enough, shallow, same);
    assert!(cloud.verify(&enclave(&cloud)).is_ok());
}

#[test]
fn rejects_chains_with_a_gap_or_a_stranger() {
    let cloud = Cloud::new();
    let other = Cloud::new();
    let bundle = |parties: &[&Party]| Value::Array(parties.iter().map(|party| Value::from(party.der.clone())).collect());
    let with = |bundle: Value| {
        let mut fields = enclave(&cloud);
        set(&mut fields, "cabundle", bundle);
        cloud.verify(&fields)
    };

    assert!(with(bundle(&[&cloud.zone])).is_ok(), "the root need not be sent");
    assert!(with(bundle(&[&other.zone, &cloud.zone, &other.root])).is_ok(), "order and strangers do no harm");
    assert_eq!(fault_of(with(bundle(&[&cloud.root]))), (Link::CertificateChain, Fault::Missing));
    assert_eq!(fault_of(with(bundle(&[&other.zone]))), (Link::CertificateChain, Fault::Invalid));
    let garbage = Value::Array(vec![Value::from(vec![0x30, 0x03, 1, 2, 3])]);
    assert_eq!(fault_of(with(garbage)), (Link::CertificateChain, Fault::Malformed));
    let trailing = Value::Array(vec![Value::from([cloud.zone.der.as_slice(), &[0]].concat())]);
    assert_eq!(fault_of(with(trailing)), (Link::CertificateChain, Fault::Malformed));
    let nobody = TrustAnchors::hardware().replace(Vendor::Aws, []).unwrap();
    let mut fields = enclave(&cloud);
    set(&mut fields, "cabundle", bundle(&[&cloud.zone]));
    let document = cloud.sign(&fields).to_vec().unwrap();
    let untrusted = at(NOW, &nobody, |context| NitroEnclave.verify_document(&document, context));
    assert_eq!(fault_of(untrusted), (Link::CertificateChain, Fault::OtherRoot), "there is no root at all");
}

#[test]
fn rejects_a_whole_chain_of_a_namesake() {
    let (cloud, namesake) = (Cloud::new(), Cloud::new());
    let document = namesake.sign(&enclave(&namesake)).to_vec().unwrap();

    assert_eq!(fault_of(cloud.verify_bytes(&document)), (Link::CertificateChain, Fault::OtherRoot));
}

#[test]
fn certificates_are_valid_up_to_their_last_second() {
    let cloud = Cloud::new();
    let document = cloud.sign(&enclave(&cloud)).to_vec().unwrap();
    let anchors = trusting(Vendor::Aws, &cloud.root.der);
    let fault = |now| at(now, &anchors, |context| NitroEnclave.verify_document(&document, context)).err().map(|refusal| refusal.fault);
    let (first, last) = (1_735_689_600, 1_798_761_600);

    assert_eq!([fault(first), fault(last)], [None, None]);
    assert_eq!([fault(first - 1), fault(last + 1)], [Some(Fault::NotYetValid), Some(Fault::Expired)]);
}

#[test]
fn chains_have_at_most_six_certificates_in_between() {
    let root = Party::root("cloud");
    let mut authorities = vec![root.authority("authority 0", |_| ())];
    for depth in 1..7 {
        let next = authorities[depth - 1].authority(&format!("authority {depth}"), |_| ());
        authorities.push(next);
    }
    let verify = |depth: usize| {
        let cloud = Cloud { root: Party::root("unused"), zone: Party::root("unused"), leaf: authorities[depth - 1].leaf("host", |_| ()) };
        let mut fields = enclave(&cloud);
        set(&mut fields, "cabundle", Value::Array(authorities[..depth].iter().map(|party| party.der.clone().into()).collect()));
        let document = cloud.sign(&fields).to_vec().unwrap();
        at(NOW, &trusting(Vendor::Aws, &root.der), |context| NitroEnclave.verify_document(&document, context))
    };

    assert!(verify(6).is_ok());
    assert_eq!(fault_of(verify(7)), (Link::CertificateChain, Fault::Malformed));
}

/// Authorities renew their keys and keep their names: the identifier of the key tells which one is meant.
#[test]
fn an_issuer_of_the_same_name_with_another_key_is_not_taken_for_the_missing_one() {
    let named: fn(&mut CertificateParams) = |params| params.use_authority_key_identifier_extension = true;
    let (cloud, namesake) = (Cloud::with(|_| (), named, named), Cloud::with(|_| (), named, named));
    let mut fields = enclave(&cloud);
    set(&mut fields, "cabundle", Value::Array(vec![namesake.zone.der.clone().into()]));

    assert_eq!(fault_of(cloud.verify(&fields)), (Link::CertificateChain, Fault::Missing));
    assert!(cloud.verify(&enclave(&cloud)).is_ok());
}
