//! How much of a chain is looked at.

use dstack_attestation::{Context, Endorsements, Fault, Link, PlatformVerifier as _, Refusal, Vendor, VerifiedPlatform, tpm::Tpm};
use dstack_event_log::HashAlgorithm;

use crate::{
    pki::{NOW, Party, trusting},
    tpm_fields::{Attest, Machine, values},
};

/// Certificates of clouds that come with the crate and count as given.
const OWN: usize = 2;

/// Verifies a quote whose key is right under the root, with `certificates` beside it.
fn verify(certificates: Vec<Vec<u8>>) -> Result<VerifiedPlatform, Refusal> {
    let root = Party::root("cloud");
    let key = root.authority("authority", |_| ()).leaf("vm", |_| ());
    let machine = Machine { root, key, is_p384: true };
    let pcrs = values(HashAlgorithm::Sha256, &[1]);
    let quote = machine.quote(&Attest::of(&pcrs), pcrs);
    let anchors = trusting(Vendor::Google, &machine.root.der);
    let endorsements = Endorsements { certificates, ..Endorsements::default() };
    Tpm.verify(&quote, &Context { anchors: &anchors, endorsements: &endorsements, now: NOW })
}

fn fault_of(certificates: Vec<Vec<u8>>) -> (Link, Fault) {
    let refusal = verify(certificates).unwrap_err();
    (refusal.link, refusal.fault)
}

#[test]
fn at_most_sixteen_certificates_are_looked_at() {
    let stranger = Party::root("stranger").der;
    let missing = (Link::CertificateChain, Fault::Missing);
    let too_many = (Link::CertificateChain, Fault::Malformed);

    let faults = [16, 17, 18].map(|count| fault_of(vec![stranger.clone(); count - OWN]));

    assert_eq!(faults, [missing, too_many, too_many]);
}

#[test]
fn certificates_have_at_most_8_kib() {
    let is_too_long = |length: usize| {
        let refusal = verify(vec![vec![0x30; length]]).unwrap_err();
        assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::Malformed));
        refusal.detail.contains("at most 8192 are read")
    };

    assert_eq!([8192, 8193, 8194].map(is_too_long), [false, true, true]);
}
