//! Example tokens of others, and tokens of a chip of our own with one change each.

use ciborium::Value;
use coset::{CborSerializable as _, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
use dstack_attestation::{
    Fault, Link, PlatformVerifier as _, Refusal, TrustAnchors, Vendor,
    cca::{ArmCca, Lifecycle, UnverifiedToken, VerifiedToken},
};
use rcgen::PublicKeyData as _;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::pki::{NOW, Party, at, bit_flips, must_read, trusting};

fn verify(token: &[u8], chip: &[u8]) -> Result<VerifiedToken, Refusal> {
    at(NOW, &trusting(Vendor::Arm, chip), |context| ArmCca.verify_token(token, context))
}

fn fault_of(result: Result<VerifiedToken, Refusal>) -> (Link, Fault) {
    let refusal = result.unwrap_err();
    (refusal.link, refusal.fault)
}

fn example(number: &str) -> (Vec<u8>, Vec<u8>) {
    (must_read(&format!("cca/cca-token-{number}.cbor")), must_read(&format!("cca/cpak-{number}.der")))
}

#[test]
fn the_example_token_of_veraison_holds() {
    let (token, chip) = example("01");

    let verified = verify(&token, &chip).unwrap();

    let platform = verified.platform();
    assert_eq!(platform.debug(), Some(false));
    assert_eq!(platform.report_data(), [0xab; 64]);
    assert_eq!(platform.fact("lifecycle"), Some("secured"));
    assert_eq!(platform.fact("platform_profile"), Some("http://arm.com/CCA-SSD/1.0.0"));
    assert_eq!(platform.register("rim"), Some([0; 32].as_slice()));
    assert_eq!(platform.register("rem3"), Some([0; 32].as_slice()));
    assert_eq!(platform.hardware_id().map(|id| hex::encode(&id[..4])), Some("01070605".to_owned()));
    let component = "BL 3.4.2 07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918 signed by \
                     07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918";
    assert_eq!(platform.fact("component0"), Some(component));
    assert_eq!(verified.platform_claims().components.len(), 4);
    assert!(platform.not_checked().iter().any(|missed| missed.link == Link::Endorsements));
    assert!(platform.passed().iter().any(|passed| passed.found == "platform ES384, realm ES384"));
}

#[test]
fn tokens_of_other_chips_are_rejected() {
    let (token, _) = example("01");
    let (other_token, other_chip) = example("02");

    assert_eq!(fault_of(verify(&token, &other_chip)), (Link::Signature, Fault::Invalid), "P-256 key, ES384 token");
    assert_eq!(fault_of(verify(&token, &Party::root("chip").der)), (Link::Signature, Fault::Invalid));
    let refusal = at(NOW, &TrustAnchors::hardware(), |context| ArmCca.verify(&token, context)).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::OtherRoot));
    assert!(UnverifiedToken::parse(&other_token).is_ok());
}

#[test]
fn no_truncation_and_no_flipped_bit_goes_unnoticed() {
    let (token, chip) = example("01");

    for length in 0..token.len() {
        assert!(UnverifiedToken::parse(&token[..length]).is_err(), "{length} bytes");
    }
    assert!(UnverifiedToken::parse(&[token.as_slice(), &[0]].concat()).is_err());
    assert!(UnverifiedToken::parse(&vec![0; 10 << 20]).is_err());
    for (position, flipped) in bit_flips(&token, 43) {
        assert!(verify(&flipped, &chip).is_err(), "byte {position}");
    }
}

type Claims = Vec<(Value, Value)>;

/// A chip with its key, and a realm with its own.
struct Chip {
    root: Party,
    key: Party,
    realm: Party,
}

/// A token before it is put together.
struct Token {
    platform: Claims,
    realm: Claims,
}

impl Chip {
    fn new() -> Self {
        let root = Party::root("maker");
        Self { key: root.leaf("chip", |_| ()), realm: root.leaf("realm", |_| ()), root }
    }

    fn point(&self) -> Vec<u8> {
        self.realm.key.der_bytes().to_vec()
    }

    fn token(&self) -> Token {
        self.token_for(&self.point(), "sha-256", Sha256::digest(self.point()).to_vec())
    }

    fn token_for(&self, key: &[u8], algorithm: &str, challenge: Vec<u8>) -> Token {
        let component = Value::Map(vec![(2.into(), vec![1; 32].into()), (5.into(), vec![2; 32].into())]);
        let platform: [(i32, Value); 8] = [
            (265, "profile".into()),
            (10, challenge.into()),
            (2396, vec![3; 32].into()),
            (256, [vec![1], vec![4; 32]].concat().into()),
            (2401, vec![5].into()),
            (2395, 0x3000.into()),
            (2399, Value::Array(vec![component])),
            (2402, "sha-256".into()),
        ];
        let realm: [(i32, Value); 7] = [
            (10, vec![6; 64].into()),
            (44235, vec![7; 64].into()),
            (44238, vec![8; 32].into()),
            (44239, Value::Array(vec![Value::from(vec![9; 32]); 4])),
            (44236, "sha-256".into()),
            (44237, key.to_vec().into()),
            (44240, algorithm.into()),
        ];
        let claims = |claims: &[(i32, Value)]| claims.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect();
        Token { platform: claims(&platform), realm: claims(&realm) }
    }

    fn encode(&self, token: &Token) -> Vec<u8> {
        let platform = sign(&token.platform, iana::Algorithm::ES384, &self.key).to_tagged_vec().unwrap();
        let realm = sign(&token.realm, iana::Algorithm::ES384, &self.realm).to_tagged_vec().unwrap();
        collection(399, &[(44234, platform), (44241, realm)])
    }

    fn verify(&self, token: &Token) -> Result<VerifiedToken, Refusal> {
        verify(&self.encode(token), &self.key.der)
    }
}

fn sign(claims: &Claims, algorithm: iana::Algorithm, key: &Party) -> CoseSign1 {
    CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(algorithm).build())
        .payload(encode(&Value::Map(claims.clone())))
        .create_signature(&[], |message| key.sign(message))
        .build()
}

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn collection(tag: u64, parts: &[(i32, Vec<u8>)]) -> Vec<u8> {
    let parts = parts.iter().map(|(key, part)| (Value::from(*key), Value::from(part.clone()))).collect();
    encode(&Value::Tag(tag, Box::new(Value::Map(parts))))
}

fn set(claims: &mut Claims, key: i32, value: impl Into<Value>) {
    claims.iter_mut().find(|(known, _)| *known == Value::from(key)).unwrap().1 = value.into();
}

#[test]
fn accepts_a_token_of_a_chosen_chip() {
    let chip = Chip::new();
    let token = chip.token();

    assert!(chip.verify(&token).is_ok(), "by a certificate");
    let spki = chip.key.key.subject_public_key_info();
    let verified = verify(&chip.encode(&token), &spki).unwrap();
    assert!(!verified.platform().anchor().is_built_in(), "by a bare key");
    assert_eq!(verified.platform().report_data(), [6; 64]);
    assert_eq!(verified.platform().register("personalization"), Some([7; 64].as_slice()));
    assert_eq!(verified.platform().register("rim"), Some([8; 32].as_slice()));
}

#[test]
fn finds_the_chip_among_several() {
    let (chip, other) = (Chip::new(), Chip::new());
    let anchors = TrustAnchors::hardware().replace(Vendor::Arm, [other.key.der.clone(), chip.key.der.clone(), other.root.der]).unwrap();

    let verified = at(NOW, &anchors, |context| ArmCca.verify(&chip.encode(&chip.token()), context));

    let fingerprint = hex::encode(Sha256::digest(&chip.key.der));
    assert!(verified.unwrap().anchor().to_string().ends_with(&fingerprint));
}

#[test]
fn rejects_certificates_of_chips_out_of_their_dates_and_other_roots() {
    let chip = Chip::new();
    let token = chip.encode(&chip.token());
    let anchors = trusting(Vendor::Arm, &chip.key.der);
    let at_time = |now| at(now, &anchors, |context| ArmCca.verify(&token, context)).unwrap_err().fault;

    assert_eq!(at_time(1_798_761_601), Fault::Expired);
    assert_eq!(at_time(1_735_689_599), Fault::NotYetValid);
    for now in [1_735_689_600, 1_798_761_600] {
        assert!(at(now, &anchors, |context| ArmCca.verify(&token, context)).is_ok(), "{now}");
    }
    assert_eq!(fault_of(verify(&token, &[0x30, 0])), (Link::CertificateChain, Fault::Malformed));
    let trailing = [chip.key.der.as_slice(), &[0]].concat();
    assert_eq!(fault_of(verify(&token, &trailing)), (Link::CertificateChain, Fault::Malformed));
}

#[test]
fn the_platform_must_vouch_for_the_realms_key() {
    let (chip, other) = (Chip::new(), Chip::new());
    let point = chip.point();
    for (algorithm, challenge) in [
        ("sha-256", Sha256::digest(&point).to_vec()),
        ("sha-384", Sha384::digest(&point).to_vec()),
        ("sha-512", Sha512::digest(&point).to_vec()),
    ] {
        assert!(chip.verify(&chip.token_for(&point, algorithm, challenge.clone())).is_ok(), "{algorithm}");
        let mut wrong = challenge;
        wrong[0] ^= 1;
        assert_eq!(fault_of(chip.verify(&chip.token_for(&point, algorithm, wrong))), (Link::AttestationKey, Fault::Invalid), "{algorithm}");
    }
    let unknown = chip.token_for(&point, "sha3-256", Sha256::digest(&point).to_vec());
    assert_eq!(fault_of(chip.verify(&unknown)), (Link::AttestationKey, Fault::NotImplemented));
    let mut swapped = chip.token();
    swapped.realm = other.token().realm;
    assert_eq!(fault_of(chip.verify(&swapped)), (Link::AttestationKey, Fault::Invalid));
}

#[test]
fn the_realms_key_may_be_a_cose_key() {
    let chip = Chip::new();
    let point = chip.point();
    let key = |kind: i32, curve: i32, x: &[u8], y: &[u8]| {
        encode(&Value::Map(vec![
            (1.into(), kind.into()),
            ((-1).into(), curve.into()),
            ((-2).into(), x.to_vec().into()),
            ((-3).into(), y.to_vec().into()),
        ]))
    };
    let with = |key: Vec<u8>| {
        let challenge = Sha256::digest(&key).to_vec();
        chip.verify(&chip.token_for(&key, "sha-256", challenge))
    };
    let (x, y) = point[1..].split_at(48);

    assert!(with(key(2, 2, x, y)).is_ok());
    for wrong in [key(1, 2, x, y), key(2, 3, x, y), key(2, 1, x, y), key(2, 2, &x[1..], y), key(2, 2, x, &y[1..])] {
        assert_eq!(fault_of(with(wrong)), (Link::AttestationKey, Fault::Malformed));
    }
    for wrong in [vec![4], point[..96].to_vec(), [point.as_slice(), &[0]].concat(), [&[2], x].concat()] {
        assert_eq!(fault_of(with(wrong)), (Link::AttestationKey, Fault::Malformed));
    }
    assert_eq!(fault_of(with(key(2, 2, y, x))), (Link::Signature, Fault::Invalid), "not a point of the curve");
}

#[test]
fn rejects_parts_signed_by_another_key() {
    let (chip, other) = (Chip::new(), Chip::new());
    let token = chip.token();
    let part = |claims: &Claims, key: &Party| sign(claims, iana::Algorithm::ES384, key).to_vec().unwrap();
    let with = |platform: &Party, realm: &Party| {
        let parts = [(44234, part(&token.platform, platform)), (44241, part(&token.realm, realm))];
        verify(&collection(399, &parts), &chip.key.der)
    };

    assert!(with(&chip.key, &chip.realm).is_ok(), "untagged parts");
    assert_eq!(fault_of(with(&other.key, &chip.realm)), (Link::Signature, Fault::Invalid));
    assert_eq!(fault_of(with(&chip.key, &other.realm)), (Link::Signature, Fault::Invalid));
}

#[test]
fn rejects_collections_of_other_forms() {
    let chip = Chip::new();
    let token = chip.token();
    let platform = sign(&token.platform, iana::Algorithm::ES384, &chip.key).to_tagged_vec().unwrap();
    let realm = sign(&token.realm, iana::Algorithm::ES384, &chip.realm).to_tagged_vec().unwrap();
    let trailing = |part: &[u8]| [part, &[0]].concat();
    let both = |tag, platform: &[u8], realm: &[u8]| collection(tag, &[(44234, platform.to_vec()), (44241, realm.to_vec())]);

    assert!(UnverifiedToken::parse(&both(399, &platform, &realm)).is_ok());
    for wrong in [
        both(907, &platform, &realm),
        both(399, &trailing(&platform), &realm),
        both(399, &platform, &trailing(&realm)),
        both(399, &realm, &platform),
        collection(399, &[(44234, platform.clone())]),
        collection(399, &[(44241, realm.clone())]),
        collection(399, &[(44234, platform.clone()), (44241, realm.clone()), (44241, realm)]),
        platform,
    ] {
        assert!(UnverifiedToken::parse(&wrong).is_err());
    }
}

#[test]
fn rejects_claims_that_are_missing_or_break_their_bounds() {
    let chip = Chip::new();
    let component =
        |measurement: usize, signer: usize| Value::Map(vec![(2.into(), vec![1; measurement].into()), (5.into(), vec![2; signer].into())]);
    let platform: [(i32, Value); 15] = [
        (265, "".into()),
        (10, vec![1; 31].into()),
        (2396, vec![3; 33].into()),
        (256, [vec![2], vec![4; 32]].concat().into()),
        (256, [vec![1], vec![4; 31]].concat().into()),
        (2401, vec![5; 4097].into()),
        (2395, 0x1_0000.into()),
        (2395, (-1).into()),
        (2399, Value::Array(Vec::new())),
        (2399, Value::Array(vec![component(32, 32); 65])),
        (2399, Value::Array(vec![component(33, 32)])),
        (2399, Value::Array(vec![component(32, 33)])),
        (2399, Value::Array(vec![Value::Map(vec![(2.into(), vec![1; 32].into())])])),
        (2402, 1.into()),
        (2402, Value::Null),
    ];
    let realm: [(i32, Value); 9] = [
        (10, vec![6; 63].into()),
        (10, vec![6; 65].into()),
        (44235, vec![7; 63].into()),
        (44238, vec![8; 31].into()),
        (44239, Value::Array(vec![Value::from(vec![9; 32]); 3])),
        (44239, Value::Array(vec![Value::from(vec![9; 32]); 5])),
        (44239, Value::Array(vec![Value::from(vec![9; 31]); 4])),
        (44237, Value::Bytes(Vec::new())),
        (44236, 1.into()),
    ];

    for (number, (key, value)) in platform.into_iter().enumerate() {
        let mut token = chip.token();
        set(&mut token.platform, key, value);
        assert_eq!(fault_of(chip.verify(&token)), (Link::Format, Fault::Malformed), "platform claim {key}, number {number}");
    }
    for (number, (key, value)) in realm.into_iter().enumerate() {
        let mut token = chip.token();
        set(&mut token.realm, key, value);
        assert_eq!(fault_of(chip.verify(&token)), (Link::Format, Fault::Malformed), "realm claim {key}, number {number}");
    }
    for missing in 0..8 {
        let mut token = chip.token();
        token.platform.remove(missing);
        assert_eq!(fault_of(chip.verify(&token)), (Link::Format, Fault::Malformed), "platform claim number {missing}");
    }
    for missing in 0..7 {
        let mut token = chip.token();
        token.realm.remove(missing);
        assert_eq!(fault_of(chip.verify(&token)), (Link::Format, Fault::Malformed), "realm claim number {missing}");
    }
}

#[test]
fn only_a_secured_chip_keeps_debuggers_out() {
    let chip = Chip::new();
    let debug = |state: u16| {
        let mut token = chip.token();
        set(&mut token.platform, 2395, state);
        chip.verify(&token).unwrap().platform().debug()
    };

    assert_eq!(debug(0x3000), Some(false));
    assert_eq!(debug(0x30ff), Some(false));
    for state in [0, 0x2fff, 0x3100, 0x4000, 0x5000, 0x6000] {
        assert_eq!(debug(state), Some(true), "{state:#x}");
    }
    let states = [
        "unknown",
        "assembly and test",
        "provisioning of the root of trust",
        "secured",
        "debug of other parts than the platform",
        "recoverable debug of the platform",
        "decommissioned",
    ];
    for (state, words) in (0x0001..).step_by(0x1000).zip(states) {
        assert_eq!(Lifecycle(state).to_string(), words);
    }
    assert_eq!(Lifecycle(0x7000).to_string(), "undefined state 0x7000");
}

#[test]
fn shows_what_is_optional() {
    let chip = Chip::new();
    let mut token = chip.token();
    token.platform.push((2400.into(), "https://verifier.example".into()));
    token.realm.push((265.into(), "realm profile".into()));
    token.realm.push((44243.into(), 1.into()));

    let verified = chip.verify(&token).unwrap();

    assert_eq!(verified.platform().fact("realm_profile"), Some("realm profile"));
    assert_eq!(verified.platform_claims().verification_service.as_deref(), Some("https://verifier.example"));
    let unnamed = format!("unnamed without version {} signed by {}", "01".repeat(32), "02".repeat(32));
    assert_eq!(verified.platform().fact("component0"), Some(unnamed.as_str()));
}
