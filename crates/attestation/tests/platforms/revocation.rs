//! Revocation lists that the caller gives.

use dstack_attestation::{
    Context, Endorsements, Fault, Link, PlatformVerifier as _, Refusal, Vendor, VerifiedPlatform,
    tpm::{Tpm, TpmQuote},
};
use dstack_event_log::HashAlgorithm;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use crate::{
    pki::{NOW, Party, trusting},
    tpm_fields::{Attest, Machine, values},
};

/// 2026-01-01 and 2026-02-01.
const ISSUED: u64 = 1_767_225_600;
const ENDS: u64 = 1_769_904_000;

/// A TPM below an authority below a root; both may sign lists.
struct Cloud {
    machine: Machine,
    authority: Party,
    quote: TpmQuote,
}

fn may_sign_lists(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from(77));
}

impl Cloud {
    fn new() -> Self {
        Self::with(may_sign_lists)
    }

    fn with(authority: fn(&mut CertificateParams)) -> Self {
        let root = Party::root_with("cloud", may_sign_lists);
        let authority = root.authority("authority", authority);
        let key = authority.leaf("vm", |params| params.serial_number = Some(SerialNumber::from(5)));
        let machine = Machine { root, key, is_p384: true };
        let pcrs = values(HashAlgorithm::Sha256, &[1]);
        let mut attest = Attest::of(&pcrs);
        attest.digest = HashAlgorithm::Sha384.digest(&[&pcrs[0].value]).as_bytes().to_vec();
        let quote = machine.quote(&attest, pcrs);
        Self { machine, authority, quote }
    }

    fn verify(&self, revocation_lists: Vec<Vec<u8>>) -> Result<VerifiedPlatform, Refusal> {
        let endorsements = Endorsements { certificates: vec![self.authority.der.clone()], revocation_lists, ..Endorsements::default() };
        let anchors = trusting(Vendor::Google, &self.machine.root.der);
        Tpm.verify(&self.quote, &Context { anchors: &anchors, endorsements: &endorsements, now: NOW })
    }

    fn fault(&self, revocation_lists: Vec<Vec<u8>>) -> (Link, Fault) {
        let refusal = self.verify(revocation_lists).unwrap_err();
        (refusal.link, refusal.fault)
    }
}

/// A list of January 2026.
fn list(issuer: &Party, serials: &[u64], change: impl FnOnce(&mut CertificateRevocationListParams)) -> Vec<u8> {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2025, 6, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let mut params = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2026, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    change(&mut params);
    params.signed_by(&issuer.issuer()).unwrap().der().to_vec()
}

#[test]
fn says_which_authority_has_no_list() {
    let cloud = Cloud::new();
    let of = |cloud: &Cloud, lists: Vec<Vec<u8>>| cloud.verify(lists).unwrap();
    let root = || list(&cloud.machine.root, &[1], |_| ());
    let authority = || list(&cloud.authority, &[1], |_| ());
    let missed = |verified: &VerifiedPlatform| {
        let why = verified.not_checked().iter().find(|missed| missed.link == Link::Revocation);
        why.map(|missed| missed.why.clone())
    };

    let none = of(&cloud, Vec::new());
    assert_eq!(missed(&none).as_deref(), Some("no revocation list was given of CN=authority and of CN=cloud"));
    assert_eq!((none.endorsed_at(), none.valid_until()), (None, Some(1_798_761_600)));
    assert_eq!(missed(&of(&cloud, vec![root()])).as_deref(), Some("no revocation list was given of CN=authority"));
    let both = of(&cloud, vec![root(), authority()]);
    assert_eq!(missed(&both), None);
    assert!(both.passed().iter().any(|passed| passed.link == Link::Revocation));
    assert_eq!((both.endorsed_at(), both.valid_until()), (Some(ISSUED), Some(ENDS)));
}

#[test]
fn rejects_revoked_keys_and_authorities() {
    let cloud = Cloud::new();

    assert_eq!(cloud.fault(vec![list(&cloud.authority, &[9, 5], |_| ())]), (Link::Revocation, Fault::Revoked));
    assert_eq!(cloud.fault(vec![list(&cloud.machine.root, &[77], |_| ())]), (Link::Revocation, Fault::Revoked));
    assert!(cloud.verify(vec![list(&cloud.machine.root, &[5], |_| ())]).is_ok(), "a serial number of another authority");
}

#[test]
fn rejects_lists_out_of_their_dates() {
    let cloud = Cloud::new();
    let with = |change: fn(&mut CertificateRevocationListParams)| cloud.fault(vec![list(&cloud.authority, &[], change)]);

    assert_eq!(with(|list| list.next_update = date_time_ymd(2026, 1, 14)), (Link::Revocation, Fault::Expired));
    assert_eq!(with(|list| list.this_update = date_time_ymd(2026, 1, 16)), (Link::Revocation, Fault::NotYetValid));
    let first: fn(&mut CertificateRevocationListParams) = |list| list.this_update = date_time_ymd(2026, 1, 15);
    let last: fn(&mut CertificateRevocationListParams) = |list| list.next_update = date_time_ymd(2026, 1, 15);
    for second in [first, last] {
        assert!(cloud.verify(vec![list(&cloud.authority, &[], second)]).is_ok());
    }
}

#[test]
fn rejects_lists_that_their_authority_did_not_sign() {
    let (cloud, namesake) = (Cloud::new(), Cloud::new());
    let mut damaged = list(&cloud.authority, &[], |_| ());
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let silent = Cloud::with(|_| ());

    assert_eq!(cloud.fault(vec![list(&namesake.authority, &[], |_| ())]), (Link::Revocation, Fault::Invalid));
    assert_eq!(cloud.fault(vec![damaged]), (Link::Revocation, Fault::Invalid));
    let mut may = silent.authority;
    may.params.key_usages.push(KeyUsagePurpose::CrlSign);
    let unsigned = list(&may, &[], |_| ());
    let silent = Cloud { authority: may, ..silent };
    assert_eq!(silent.fault(vec![unsigned]), (Link::Revocation, Fault::Invalid), "the certificate does not allow it to sign lists");
}

#[test]
fn ignores_lists_of_strangers_and_rejects_what_is_no_list() {
    let cloud = Cloud::new();
    let stranger = Party::root_with("stranger", may_sign_lists);
    let genuine = list(&cloud.authority, &[], |_| ());

    assert!(cloud.verify(vec![list(&stranger, &[5], |_| ())]).is_ok());
    assert_eq!(cloud.fault(vec![[genuine.as_slice(), &[0]].concat()]), (Link::Revocation, Fault::Malformed));
    assert_eq!(cloud.fault(vec![genuine[..genuine.len() - 1].to_vec()]), (Link::Revocation, Fault::Malformed));
    let is_too_long = |length: usize| cloud.verify(vec![vec![0x30; length]]).unwrap_err().detail.contains("at most 1048576 are read");
    assert_eq!([1 << 20, (1 << 20) + 1, (1 << 20) + 2].map(is_too_long), [false, true, true]);
    assert!(cloud.verify(vec![genuine.clone(); 32]).is_ok());
    assert_eq!(cloud.fault(vec![genuine; 33]), (Link::Revocation, Fault::Malformed));
}
