//! A vendor with AMD's kind of certificates and reports, so that a test can change one thing and sign the rest properly.
//!
//! Keys are made once per test program. RSA keys have 2048 bits, AMD's have 4096.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "fields of the vendor's own formats; tests panic on purpose"
)]

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair},
};
use dstack_attestation::{
    Context, Endorsements, Refusal, TrustAnchors, Vendor,
    sev_snp::{SevSnp, VerifiedReport},
};

/// 2025-06-15, within the validity of every certificate.
pub const NOW: u64 = 1_750_000_000;

const OID_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const OID_MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8];
pub const OID_SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
pub const OID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const OID_P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
pub const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const OID_COMMON_NAME: &[u8] = &[0x55, 4, 3];
pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
/// keyCertSign and cRLSign.
const MAY_SIGN: &[u8] = &[3, 2, 1, 6];

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys { root: rsa(), authority: rsa(), other: rsa(), chip: ec(), other_chip: ec() });

struct Keys {
    root: RsaKeyPair,
    authority: RsaKeyPair,
    other: RsaKeyPair,
    chip: EcdsaKeyPair,
    other_chip: EcdsaKeyPair,
}

fn rsa() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).unwrap()
}

fn ec() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()
}

/// Whose key signs or is certified.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Root,
    Authority,
    /// A stranger's RSA key.
    Other,
    Chip,
    OtherChip,
}

impl Key {
    fn rsa(self) -> &'static RsaKeyPair {
        match self {
            Self::Root => &KEYS.root,
            Self::Authority => &KEYS.authority,
            _ => &KEYS.other,
        }
    }

    fn ec(self) -> &'static EcdsaKeyPair {
        if self == Self::Chip { &KEYS.chip } else { &KEYS.other_chip }
    }

    fn public(self, curve: &[u8]) -> Vec<u8> {
        match self {
            Self::Chip | Self::OtherChip => {
                let algorithm = sequence(&[&tlv(6, OID_EC), &tlv(6, curve)]);
                sequence(&[&algorithm, &bits(self.ec().public_key().as_ref())])
            }
            _ => {
                let algorithm = sequence(&[&tlv(6, OID_RSA), &tlv(5, &[])]);
                let key: Vec<u8> = self.rsa().public_key().as_ref().to_vec();
                sequence(&[&algorithm, &bits(&key)])
            }
        }
    }
}

pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        len @ 0..=0x7f => vec![len as u8],
        len @ 0x80..=0xff => vec![0x81, len as u8],
        len => vec![0x82, (len >> 8) as u8, len as u8],
    };
    [&[tag], length.as_slice(), content].concat()
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn bits(content: &[u8]) -> Vec<u8> {
    tlv(3, &[&[0], content].concat())
}

pub fn integer(number: u64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let digits = &bytes[bytes.iter().take_while(|byte| **byte == 0).count().min(7)..];
    let sign: &[u8] = if digits[0] & 0x80 != 0 { &[0] } else { &[] };
    tlv(2, &[sign, digits].concat())
}

fn name(common_name: &str) -> Vec<u8> {
    sequence(&[&tlv(0x31, &sequence(&[&tlv(6, OID_COMMON_NAME), &tlv(0x0c, common_name.as_bytes())]))])
}

/// An extension: content of its OID, critical, value.
pub type Extension = (Vec<u8>, bool, Vec<u8>);

/// One of AMD's extensions.
pub fn amd(numbers: &[u8], value: Vec<u8>) -> Extension {
    ([&[0x2b, 0x06, 0x01, 0x04, 0x01, 0x9c, 0x78, 0x01], numbers].concat(), false, value)
}

/// Parameters of RSA-PSS as a certificate names them; the signature itself is always the right one.
#[derive(Clone)]
pub struct Pss {
    pub hash: &'static [u8],
    pub mask_hash: &'static [u8],
    pub salt: u64,
    pub trailer: Option<u64>,
}

pub const PSS: Pss = Pss { hash: OID_SHA384, mask_hash: OID_SHA384, salt: 48, trailer: None };

impl Pss {
    fn der(&self) -> Vec<u8> {
        let hash = |oid: &[u8]| sequence(&[&tlv(6, oid), &tlv(5, &[])]);
        let mut parameters = tlv(0xa0, &hash(self.hash));
        parameters.extend(tlv(0xa1, &sequence(&[&tlv(6, OID_MGF1), &hash(self.mask_hash)])));
        parameters.extend(tlv(0xa2, &integer(self.salt)));
        if let Some(trailer) = self.trailer {
            parameters.extend(tlv(0xa3, &integer(trailer)));
        }
        sequence(&[&tlv(6, OID_PSS), &tlv(0x30, &parameters)])
    }
}

fn sign_rsa(key: Key, message: &[u8]) -> Vec<u8> {
    let pair = key.rsa();
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&signature::RSA_PSS_SHA384, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

/// A certificate before it is signed.
#[derive(Clone)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    pub serial: u64,
    /// `YYYYMMDDHHMMSSZ`.
    pub not_before: String,
    pub not_after: String,
    pub key: Key,
    pub curve: &'static [u8],
    pub signed_by: Key,
    pub algorithm: Pss,
    pub outer_algorithm: Pss,
    pub extensions: Vec<Extension>,
}

impl Certificate {
    fn new(subject: String, issuer: String, key: Key, signed_by: Key) -> Self {
        Self {
            subject,
            issuer,
            serial: 0,
            not_before: "20250101000000Z".into(),
            not_after: "20300101000000Z".into(),
            key,
            curve: OID_P384,
            signed_by,
            algorithm: PSS,
            outer_algorithm: PSS,
            extensions: Vec::new(),
        }
    }

    fn authority(subject: String, issuer: String, key: Key) -> Self {
        let extensions =
            vec![(BASIC_CONSTRAINTS.to_vec(), true, sequence(&[&tlv(1, &[0xff])])), (KEY_USAGE.to_vec(), true, MAY_SIGN.to_vec())];
        Self { serial: 7, extensions, ..Self::new(subject, issuer, key, Key::Root) }
    }

    pub fn der(&self) -> Vec<u8> {
        let time = |text: &str| tlv(0x18, text.as_bytes());
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        let body = sequence(&[
            &tlv(0xa0, &integer(2)),
            &integer(self.serial),
            &self.algorithm.der(),
            &name(&self.issuer),
            &sequence(&[&time(&self.not_before), &time(&self.not_after)]),
            &name(&self.subject),
            &self.key.public(self.curve),
            &tlv(0xa3, &tlv(0x30, &extensions)),
        ]);
        let signature = sign_rsa(self.signed_by, &body);
        sequence(&[&body, &self.outer_algorithm.der(), &bits(&signature)])
    }

    /// The extension with these numbers under AMD's, or the one of X.509.
    pub fn extension(&mut self, oid: &[u8]) -> &mut Extension {
        self.extensions.iter_mut().find(|(found, ..)| found == oid || found.ends_with(oid) && found.len() == oid.len() + 8).unwrap()
    }

    pub fn remove(&mut self, oid: &[u8]) {
        let before = self.extensions.len();
        self.extensions.retain(|(found, ..)| !(found == oid || found.ends_with(oid) && found.len() == oid.len() + 8));
        assert_eq!(self.extensions.len() + 1, before);
    }
}

fn extension((oid, critical, value): &Extension) -> Vec<u8> {
    let critical = if *critical { tlv(1, &[0xff]) } else { Vec::new() };
    sequence(&[&tlv(6, oid), &critical, &tlv(4, value)])
}

/// A revocation list before it is signed.
#[derive(Clone)]
pub struct RevocationList {
    pub issuer: String,
    pub this_update: String,
    pub next_update: Option<String>,
    pub revoked: Vec<u64>,
    pub signed_by: Key,
    pub algorithm: Pss,
    pub outer_algorithm: Pss,
    pub extensions: Vec<Extension>,
}

impl RevocationList {
    pub fn of(issuer: &str) -> Self {
        Self {
            issuer: issuer.into(),
            this_update: "20250601000000Z".into(),
            next_update: Some("20250701000000Z".into()),
            revoked: vec![1, 300],
            signed_by: Key::Root,
            algorithm: PSS,
            outer_algorithm: PSS,
            extensions: vec![(vec![0x55, 0x1d, 20], false, integer(5))],
        }
    }

    pub fn der(&self) -> Vec<u8> {
        let time = |text: &str| tlv(0x18, text.as_bytes());
        let revoked: Vec<u8> = self.revoked.iter().flat_map(|serial| sequence(&[&integer(*serial), &time("20250501000000Z")])).collect();
        let revoked = if revoked.is_empty() { Vec::new() } else { tlv(0x30, &revoked) };
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        let next = self.next_update.as_deref().map(time).unwrap_or_default();
        let body = sequence(&[
            &integer(1),
            &self.algorithm.der(),
            &name(&self.issuer),
            &time(&self.this_update),
            &next,
            &revoked,
            &tlv(0xa0, &tlv(0x30, &extensions)),
        ]);
        let signature = sign_rsa(self.signed_by, &body);
        sequence(&[&body, &self.outer_algorithm.der(), &bits(&signature)])
    }
}

/// A machine with its papers. A test changes single things, then verifies.
#[derive(Clone)]
pub struct Machine {
    pub report: Vec<u8>,
    pub report_signed_by: Key,
    pub key: Certificate,
    pub authority: Certificate,
    pub root: Certificate,
    pub lists: Vec<RevocationList>,
    pub now: u64,
}

impl Machine {
    pub fn milan() -> Self {
        Self::vcek("Milan", [0x19, 1, 1], &[3, 0, 0, 0, 0, 0, 8, 0xd5], &[0xc1; 64])
    }

    pub fn turin() -> Self {
        let mut machine = Self::vcek("Turin", [0x1a, 2, 0], &[1, 2, 3, 4, 0, 0, 0, 200], &[0xc2; 8]);
        machine.key.extensions.retain(|(oid, ..)| !oid.ends_with(&[1, 3, 1]) && !oid.ends_with(&[1, 3, 2]) && !oid.ends_with(&[1, 3, 3]));
        for (number, svn) in [(9, 1), (1, 2), (2, 3), (3, 4)] {
            machine.key.extensions.push(amd(&[3, number], integer(svn)));
        }
        machine
    }

    /// A machine whose key was loaded for a cloud provider, and that does not say which chip it is.
    pub fn cloud() -> Self {
        let mut machine = Self::milan();
        machine.set(0x48, &[1 << 2]);
        machine.set(0x1a0, &[0; 64]);
        machine.key.subject = "SEV-VLEK".into();
        machine.key.issuer = "SEV-VLEK-Milan".into();
        machine.authority.subject = "SEV-VLEK-Milan".into();
        machine.key.remove(&[4]);
        machine.key.extensions.push(amd(&[5], tlv(0x16, b"CN=cloud.example")));
        machine
    }

    fn vcek(product: &str, cpuid: [u8; 3], tcb: &[u8; 8], chip: &[u8]) -> Self {
        let mut report = vec![0; 1184];
        let mut set = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        set(0x00, &5_u32.to_le_bytes());
        set(0x08, &0x3_0000_u64.to_le_bytes());
        set(0x34, &1_u32.to_le_bytes());
        set(0x50, &[0xd1; 64]);
        set(0x90, &[0xa1; 48]);
        set(0xc0, &[0xb1; 32]);
        set(0x188, &cpuid);
        set(0x1a0, chip);
        for at in [0x38, 0x180, 0x1e0, 0x1f0] {
            set(at, tcb);
        }
        let ark = format!("ARK-{product}");
        let ask = format!("SEV-{product}");
        let mut key = Certificate::new("SEV-VCEK".into(), ask.clone(), Key::Chip, Key::Authority);
        key.extensions = vec![
            amd(&[1], integer(0)),
            amd(&[2], tlv(0x16, format!("{product}-B0").as_bytes())),
            amd(&[3, 1], integer(u64::from(tcb[0]))),
            amd(&[3, 2], integer(u64::from(tcb[1]))),
            amd(&[3, 4], integer(0)),
            amd(&[3, 5], integer(0)),
            amd(&[3, 6], integer(0)),
            amd(&[3, 7], integer(0)),
            amd(&[3, 3], integer(u64::from(tcb[6]))),
            amd(&[3, 8], integer(u64::from(tcb[7]))),
            amd(&[4], chip.to_vec()),
        ];
        Self {
            report,
            report_signed_by: Key::Chip,
            key,
            authority: Certificate::authority(ask, ark.clone(), Key::Authority),
            root: Certificate::authority(ark.clone(), ark, Key::Root),
            lists: Vec::new(),
            now: NOW,
        }
    }

    /// Overwrites bytes of the report.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.report[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The report with its signature.
    pub fn signed_report(&self) -> Vec<u8> {
        let mut report = self.report.clone();
        let signature = self.report_signed_by.ec().sign(&SystemRandom::new(), &report[..0x2a0]).unwrap();
        let (r, s) = signature.as_ref().split_at(48);
        for (at, number) in [(0x2a0, r), (0x2a0 + 72, s)] {
            for (place, byte) in report[at..].iter_mut().zip(number.iter().rev()) {
                *place = *byte;
            }
        }
        report
    }

    /// The launch measurement, HOST_DATA and report data of a guest.
    pub fn of_guest(mut self, measurement: &[u8; 48], host_data: &[u8; 32], report_data: &[u8; 64]) -> Self {
        self.set(0x90, measurement);
        self.set(0xc0, host_data);
        self.set(0x50, report_data);
        self
    }

    /// With the whole chain given. A certificate has other bytes each time it is signed, so the root is signed once.
    pub fn verify(&self) -> Result<VerifiedReport, Refusal> {
        let root = self.root.der();
        let anchors = TrustAnchors::hardware().replace(Vendor::Amd, [root.clone()]).unwrap();
        self.verify_given(vec![self.key.der(), self.authority.der(), root], &anchors)
    }

    pub fn verify_given(&self, certificates: Vec<Vec<u8>>, anchors: &TrustAnchors) -> Result<VerifiedReport, Refusal> {
        let revocation_lists = self.lists.iter().map(RevocationList::der).collect();
        let endorsements = Endorsements { collateral: None, certificates, revocation_lists };
        SevSnp.verify_report(&self.signed_report(), &Context { anchors, endorsements: &endorsements, now: self.now })
    }
}
