//! Single changes of signed things, under a vendor of our own: what must matter, matters, and is named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests panic on purpose")]

use dstack_attestation::{AnchorKind, Context, Endorsements, Fault, Link, Refusal, TcbStatus, TrustAnchors, Vendor, sev_snp};
use dstack_testkit::software_snp::{
    self as snp_vendor, BASIC_CONSTRAINTS, KEY_USAGE, Key, Machine, NOW, OID_P256, OID_SHA256, PSS, Pss, RevocationList, amd, integer, tlv,
};

fn refused(machine: &Machine) -> Refusal {
    machine.verify().unwrap_err()
}

/// Verifies the machine after `change`, which must be refused at `link` for `fault`; returns the detail.
fn assert_refused(machine: Machine, link: Link, fault: Fault, change: impl FnOnce(&mut Machine)) -> String {
    let mut machine = machine;
    machine.verify().unwrap_or_else(|refusal| panic!("before the change: {refusal}"));
    change(&mut machine);
    let refusal = refused(&machine);
    assert_eq!((refusal.link, refusal.fault), (link, fault), "{refusal}");
    refusal.detail
}

fn assert_accepted(machine: Machine, change: impl FnOnce(&mut Machine)) -> sev_snp::VerifiedReport {
    let mut machine = machine;
    change(&mut machine);
    machine.verify().unwrap_or_else(|refusal| panic!("{refusal}"))
}

#[test]
fn machines_of_our_own_vendor_verify() {
    for (machine, product) in [(Machine::milan(), "Milan"), (Machine::turin(), "Turin"), (Machine::cloud(), "Milan")] {
        let verified = machine.verify().unwrap();

        assert_eq!(verified.product().name(), product);
        assert!(matches!(verified.platform().anchor(), AnchorKind::Chosen { .. }));
        assert_eq!(verified.platform().valid_until(), Some(1_893_456_000), "2030-01-01");
        assert_eq!(verified.platform().tcb_status(), Some(TcbStatus::UpToDate));
    }
}

#[test]
fn our_own_vendor_is_not_amd() {
    let machine = Machine::milan();
    let all = vec![machine.key.der(), machine.authority.der(), machine.root.der()];

    for given in [all.clone(), all[..2].to_vec(), all[..1].to_vec()] {
        let refusal = machine.verify_given(given, &TrustAnchors::hardware()).unwrap_err();
        assert_eq!(refusal.link, Link::CertificateChain, "{refusal}");
        assert!(matches!(refusal.fault, Fault::OtherRoot | Fault::Invalid), "{refusal}");
    }
}

#[test]
fn chain_of_a_stranger_is_refused() {
    use Fault::{Invalid, OtherRoot};
    let chain = |fault, change: fn(&mut Machine)| assert_refused(Machine::milan(), Link::CertificateChain, fault, change);

    chain(Invalid, |machine| machine.key.signed_by = Key::Other);
    chain(OtherRoot, |machine| machine.authority.signed_by = Key::Other);
    chain(Invalid, |machine| machine.authority.key = Key::Other);
    chain(OtherRoot, |machine| machine.key.issuer = "SEV-VLEK-Milan".into());
    chain(OtherRoot, |machine| machine.key.issuer = "SEV-Genoa".into());
    chain(OtherRoot, |machine| machine.key.issuer = "SEV-Milan-B0".into());
    chain(OtherRoot, |machine| machine.key.issuer = "SEV-Venice".into());
    chain(OtherRoot, |machine| machine.authority.subject = "SEV-Genoa".into());
    chain(OtherRoot, |machine| machine.authority.issuer = "ARK-Genoa".into());
    chain(OtherRoot, |machine| machine.authority.issuer = "Milan".into());
}

#[test]
fn a_vcek_under_the_authority_of_vleks_is_refused_and_the_reverse() {
    assert_refused(Machine::milan(), Link::CertificateChain, Fault::OtherRoot, |machine| {
        machine.key.issuer = "SEV-VLEK-Milan".into();
        machine.authority.subject = "SEV-VLEK-Milan".into();
    });
    assert_refused(Machine::cloud(), Link::CertificateChain, Fault::OtherRoot, |machine| {
        machine.key.issuer = "SEV-Milan".into();
        machine.authority.subject = "SEV-Milan".into();
    });
}

#[test]
fn the_key_must_be_of_the_kind_the_report_names() {
    let missing = assert_refused(Machine::milan(), Link::CertificateChain, Fault::Missing, |machine| machine.set(0x48, &[1 << 2]));
    assert_eq!(missing, "no VLEK certificate was given");
    assert_refused(Machine::cloud(), Link::CertificateChain, Fault::Missing, |machine| machine.set(0x48, &[0]));
    assert_refused(Machine::milan(), Link::CertificateChain, Fault::Missing, |machine| machine.key.subject = "SEV-VLEK".into());
    assert_refused(Machine::milan(), Link::Format, Fault::Malformed, |machine| machine.set(0x48, &[7 << 2]));
    assert_refused(Machine::milan(), Link::Format, Fault::Malformed, |machine| machine.set(0x48, &[2 << 2]));
}

#[test]
fn every_certificate_must_be_within_its_dates() {
    type Pick = fn(&mut Machine) -> &mut snp_vendor::Certificate;
    let places: [(&str, Pick); 3] = [
        ("VCEK", |machine| &mut machine.key),
        ("SEV-Milan", |machine| &mut machine.authority),
        ("AMD's root", |machine| &mut machine.root),
    ];
    for (name, pick) in places {
        let expired = assert_refused(Machine::milan(), Link::CertificateChain, Fault::Expired, |machine| {
            pick(machine).not_after = "20250615150639Z".into();
        });
        assert!(expired.starts_with(name), "{expired}");
        let early = assert_refused(Machine::milan(), Link::CertificateChain, Fault::NotYetValid, |machine| {
            pick(machine).not_before = "20250615150641Z".into();
        });
        assert!(early.starts_with(name), "{early}");
        let verified = assert_accepted(Machine::milan(), |machine| {
            pick(machine).not_before = "20250615150640Z".into();
            pick(machine).not_after = "20250615150640Z".into();
        });
        assert_eq!(verified.platform().valid_until(), Some(NOW), "the earliest end counts");
    }
}

#[test]
fn only_authorities_may_sign() {
    type Pick = fn(&mut Machine) -> &mut snp_vendor::Certificate;
    let places: [Pick; 2] = [|machine| &mut machine.authority, |machine| &mut machine.root];
    for pick in places {
        let invalid = |change: fn(&mut snp_vendor::Certificate)| {
            assert_refused(Machine::milan(), Link::CertificateChain, Fault::Invalid, |machine| change(pick(machine)))
        };
        invalid(|certificate| certificate.remove(BASIC_CONSTRAINTS));
        invalid(|certificate| certificate.remove(KEY_USAGE));
        invalid(|certificate| certificate.extension(BASIC_CONSTRAINTS).2 = tlv(0x30, &[]));
        invalid(|certificate| certificate.extension(KEY_USAGE).2 = vec![3, 2, 1, 2]);
        invalid(|certificate| certificate.extensions.push((vec![0x55, 0x1d, 30], true, tlv(0x30, &[]))));
        invalid(|certificate| certificate.key = Key::Chip);
    }
    let leaf = |change: fn(&mut Machine)| assert_refused(Machine::milan(), Link::CertificateChain, Fault::Invalid, change);
    leaf(|machine| machine.key.extensions.push((BASIC_CONSTRAINTS.to_vec(), true, tlv(0x30, &tlv(1, &[0xff])))));
    leaf(|machine| machine.key.extensions.push((vec![0x2a, 3], true, vec![])));
    assert_accepted(Machine::milan(), |machine| machine.key.extensions.push((vec![0x2a, 3], false, vec![])));
    assert_accepted(Machine::milan(), |machine| machine.key.extensions.push((KEY_USAGE.to_vec(), true, vec![3, 2, 7, 0x80])));
}

#[test]
fn only_pss_with_sha384_is_read() {
    for wrong in
        [Pss { hash: OID_SHA256, ..PSS }, Pss { mask_hash: OID_SHA256, ..PSS }, Pss { salt: 32, ..PSS }, Pss { trailer: Some(2), ..PSS }]
    {
        let detail = assert_refused(Machine::milan(), Link::CertificateChain, Fault::Invalid, |machine| {
            machine.key.algorithm = wrong.clone();
            machine.key.outer_algorithm = wrong;
        });
        assert!(detail.contains("the algorithm is not"), "{detail}");
    }
    let detail = assert_refused(Machine::milan(), Link::CertificateChain, Fault::Invalid, |machine| {
        machine.key.outer_algorithm = Pss { trailer: Some(1), ..PSS };
    });
    assert_eq!(detail, "SEV-VCEK names two signature algorithms");
    assert_accepted(Machine::milan(), |machine| {
        machine.key.algorithm = Pss { trailer: Some(1), ..PSS };
        machine.key.outer_algorithm = Pss { trailer: Some(1), ..PSS };
    });
}

#[test]
fn the_key_must_be_of_the_reports_tcb() {
    let other = |machine: Machine, oid: &[u8], value: u64| {
        assert_refused(machine, Link::AttestationKey, Fault::OtherPlatform, |machine| machine.key.extension(oid).2 = integer(value))
    };
    for number in [1, 2, 3, 8] {
        other(Machine::milan(), &[3, number], 99);
        other(Machine::cloud(), &[3, number], 99);
        other(Machine::turin(), &[3, number], 99);
    }
    other(Machine::turin(), &[3, 9], 99);
    for number in 4..=7 {
        assert_refused(Machine::milan(), Link::AttestationKey, Fault::Malformed, |machine| {
            machine.key.extension(&[3, number]).2 = integer(1)
        });
    }
    for at in 0x180..0x188 {
        for machine in [Machine::milan(), Machine::turin(), Machine::cloud()] {
            assert_refused(machine, Link::AttestationKey, Fault::OtherPlatform, |machine| machine.report[at] ^= 1);
        }
    }
    assert_accepted(Machine::milan(), |machine| machine.key.extensions.push(amd(&[3, 9], integer(5))));
}

#[test]
fn the_key_must_be_of_the_reports_chip() {
    let other = |machine: Machine, change: fn(&mut Machine)| assert_refused(machine, Link::AttestationKey, Fault::OtherPlatform, change);

    other(Machine::milan(), |machine| machine.report[0x1a0] ^= 1);
    other(Machine::milan(), |machine| machine.report[0x1df] ^= 1);
    other(Machine::milan(), |machine| machine.set(0x1a0, &[0; 64]));
    other(Machine::milan(), |machine| machine.key.extension(&[4]).2[63] ^= 1);
    other(Machine::milan(), |machine| machine.key.extension(&[4]).2.truncate(63));
    other(Machine::turin(), |machine| machine.report[0x1a7] ^= 1);
    other(Machine::turin(), |machine| machine.report[0x1a8] ^= 1);
    other(Machine::turin(), |machine| machine.key.extension(&[4]).2[7] ^= 1);
    assert_refused(Machine::milan(), Link::AttestationKey, Fault::Malformed, |machine| machine.key.remove(&[4]));
    for machine in [Machine::milan(), Machine::turin()] {
        assert_accepted(machine, |machine| {
            let id = machine.key.extension(&[4]);
            id.2 = tlv(4, &id.2);
        });
    }
    // Ids that begin like an OCTET STRING are ids.
    for (machine, length) in [(Machine::milan(), 64), (Machine::turin(), 8)] {
        assert_accepted(machine, |machine| {
            let id = [&[4, length], vec![0xc3; usize::from(length) - 2].as_slice()].concat();
            machine.set(0x1a0, &id);
            machine.key.extension(&[4]).2 = id;
        });
    }
}

#[test]
fn a_cloud_key_names_its_cloud_and_no_chip() {
    assert_refused(Machine::cloud(), Link::AttestationKey, Fault::Malformed, |machine| machine.key.remove(&[5]));
    assert_refused(Machine::cloud(), Link::AttestationKey, Fault::Malformed, |machine| machine.key.extension(&[5]).2 = b"cloud".to_vec());
    let verified = assert_accepted(Machine::cloud(), |machine| machine.set(0x1a0, &[9; 64]));
    assert_eq!(verified.provider(), Some("CN=cloud.example"));
    assert_eq!(verified.platform().hardware_id(), Some([9; 64].as_slice()), "the firmware says which chip it is");
    assert_eq!(Machine::cloud().verify().unwrap().platform().hardware_id(), None);
    let vouched = |verified: sev_snp::VerifiedReport| {
        let passed = verified.platform().passed().iter().find(|passed| passed.link == Link::AttestationKey);
        passed.map(|passed| passed.found.split("; ").next().unwrap().to_owned()).unwrap()
    };
    assert_eq!(vouched(verified), "loaded for CN=cloud.example");
    assert_eq!(vouched(Machine::milan().verify().unwrap()), "of the chip in the report");
}

#[test]
fn the_key_must_be_of_the_reports_product() {
    let other = |change: fn(&mut Machine)| assert_refused(Machine::milan(), Link::AttestationKey, Fault::OtherPlatform, change);

    other(|machine| machine.set(0x188, &[0x19, 0x11, 1]));
    other(|machine| machine.set(0x188, &[0x17, 1, 1]));
    other(|machine| machine.key.extension(&[2]).2 = tlv(0x16, b"Venice-A0"));
    let detail = other(|machine| {
        machine.key.extension(&[2]).2 = tlv(0x16, b"Genoa-B1");
        machine.set(0x188, &[0x19, 0x11, 1]);
    });
    assert_eq!(detail, "a key of Genoa under the authority of Milan");
    assert_accepted(Machine::milan(), |machine| machine.key.extension(&[2]).2 = tlv(0x0c, b"Milan"));
    assert_accepted(Machine::milan(), |machine| {
        machine.set(0x00, &2_u32.to_le_bytes());
        machine.set(0x188, &[0; 3]);
    });
}

#[test]
fn the_papers_of_the_key_must_be_whole() {
    let malformed =
        |machine: Machine, change: &dyn Fn(&mut Machine)| assert_refused(machine, Link::AttestationKey, Fault::Malformed, change);

    for oid in [&[2_u8] as &[u8], &[3, 1], &[3, 2], &[3, 3], &[3, 8]] {
        malformed(Machine::milan(), &|machine| machine.key.remove(oid));
        malformed(Machine::milan(), &|machine| {
            let twice = machine.key.extension(oid).clone();
            machine.key.extensions.push(twice);
        });
        for garbage in
            [vec![], vec![2], vec![2, 1], vec![2, 2, 1, 0], vec![2, 1, 0x80], vec![2, 2, 0, 0x7f], vec![4, 1, 0], vec![2, 1, 1, 1]]
        {
            malformed(Machine::milan(), &|machine| machine.key.extension(oid).2 = garbage.clone());
        }
    }
    malformed(Machine::turin(), &|machine| machine.key.remove(&[3, 9]));
    malformed(Machine::milan(), &|machine| {
        let twice = machine.key.extension(&[4]).clone();
        machine.key.extensions.push(twice);
    });
    malformed(Machine::milan(), &|machine| machine.key.extension(&[2]).2 = tlv(0x16, &[b'M', 0xff]));
    malformed(Machine::milan(), &|machine| machine.key.extension(&[2]).2 = [tlv(0x16, b"Milan").as_slice(), b"-B0"].concat());
    malformed(Machine::milan(), &|machine| machine.key.curve = OID_P256);
    malformed(Machine::milan(), &|machine| machine.key.key = Key::Other);
    for unknown in [&[9_u8] as &[u8], &[3, 10], &[3, 1, 1], &[1]] {
        assert_accepted(Machine::milan(), |machine| machine.key.extensions.push(amd(unknown, integer(1))));
    }
}

#[test]
fn the_report_must_be_signed_by_the_key() {
    assert_refused(Machine::milan(), Link::Signature, Fault::Invalid, |machine| machine.report_signed_by = Key::OtherChip);
    assert_refused(Machine::milan(), Link::Signature, Fault::Invalid, |machine| machine.key.key = Key::OtherChip);
}

#[test]
fn reserved_bytes_of_known_versions_must_be_zero() {
    // (version, reserved ranges inside the signed part)
    let all = [(0x4c, 0x50), (0x1eb, 0x1ec), (0x1ef, 0x1f0), (0x208, 0x2a0)];
    for (version, ranges) in [
        (2_u32, [all.as_slice(), &[(0x188, 0x1a0), (0x1f8, 0x208)]].concat()),
        (3, [all.as_slice(), &[(0x18b, 0x1a0), (0x1f8, 0x208)]].concat()),
        (4, [all.as_slice(), &[(0x18b, 0x1a0), (0x1f8, 0x208)]].concat()),
        (5, [all.as_slice(), &[(0x18b, 0x1a0)]].concat()),
    ] {
        let mut machine = Machine::milan();
        machine.set(0, &version.to_le_bytes());
        if version == 2 {
            machine.set(0x188, &[0; 3]);
        }
        for at in ranges.iter().flat_map(|(start, end)| [*start, end - 1]).chain([0x49, 0x4b]) {
            let detail = assert_refused(machine.clone(), Link::Format, Fault::Malformed, |machine| machine.report[at] = 0x80);
            assert!(detail.contains("reserved bytes"), "version {version} {at:#x}: {detail}");
        }
        assert_refused(machine, Link::Format, Fault::Malformed, |machine| machine.report[0x48] |= 1 << 5);
    }
}

#[test]
fn bytes_behind_the_signature_must_be_zero() {
    let machine = Machine::milan();
    for version in [5_u32, 6] {
        let mut machine = machine.clone();
        machine.set(0, &version.to_le_bytes());
        for at in [0x2d0, 0x2e7, 0x318, 0x32f, 0x330, 0x49f] {
            assert_refused(machine.clone(), Link::Format, Fault::Malformed, |machine| machine.report[at] = 1);
        }
    }
}

#[test]
fn later_versions_are_read_as_far_as_they_are_known() {
    let verified = assert_accepted(Machine::milan(), |machine| {
        machine.set(0, &6_u32.to_le_bytes());
        for at in [0x48, 0x4c, 0x18b, 0x1eb, 0x208, 0x29f] {
            machine.report[at] |= 0x20;
        }
        machine.set(0x1f8, &7_u64.to_le_bytes());
        machine.set(0x200, &9_u64.to_le_bytes());
    });
    assert!(verified.fields().is_newer_than_known());
    assert_eq!(verified.fields().mitigations, Some([7, 9]));
    for version in [0_u32, 1] {
        let detail = assert_refused(Machine::milan(), Link::Format, Fault::Malformed, |machine| machine.set(0, &version.to_le_bytes()));
        assert!(detail.contains("version"), "{detail}");
    }
    assert_refused(Machine::milan(), Link::Format, Fault::Malformed, |machine| machine.set(0x34, &[2]));
    assert_refused(Machine::milan(), Link::Format, Fault::Malformed, |machine| machine.set(0x34, &[0]));
}

#[test]
fn each_fact_follows_its_bit() {
    let policy = [
        (16, "policy_smt"),
        (18, "policy_migration_agent"),
        (19, "policy_debug"),
        (20, "policy_single_socket"),
        (21, "policy_cxl"),
        (22, "policy_aes_256_xts"),
        (23, "policy_rapl_disabled"),
        (24, "policy_ciphertext_hiding"),
        (25, "policy_page_swap_disabled"),
    ];
    let info = [
        (0, "platform_smt"),
        (1, "platform_tsme"),
        (2, "platform_ecc"),
        (3, "platform_rapl_disabled"),
        (4, "platform_ciphertext_hiding"),
        (5, "platform_alias_check_complete"),
        (7, "platform_trusted_io"),
    ];
    for (offset, bits) in [(0x08, policy.as_slice()), (0x40, &info)] {
        for (bit, name) in bits {
            for value in [false, true] {
                let others = if offset == 0x08 { 0x3ff_0000_u64 } else { 0xbf };
                let word = if value { 1_u64 << bit } else { others & !(1 << bit) };
                let verified = assert_accepted(Machine::milan(), |machine| machine.set(offset, &word.to_le_bytes()));
                assert_eq!(verified.platform().fact(name), Some(value.to_string().as_str()), "{name}");
            }
        }
    }
    let verified = assert_accepted(Machine::milan(), |machine| {
        machine.set(0x04, &9_u32.to_le_bytes());
        machine.set(0x08, &0x8000_0000_0003_1f01_u64.to_le_bytes());
        machine.set(0x30, &2_u32.to_le_bytes());
        machine.set(0x48, &[3]);
    });
    let fact = |name| verified.platform().fact(name).unwrap().to_owned();
    assert_eq!((fact("guest_svn"), fact("vmpl"), fact("policy_abi")), ("9".into(), "2".into(), "31.1".into()));
    assert_eq!((fact("policy_unknown_bits"), fact("author_key_enabled")), ("0x8000000000000000".into(), "true".into()));
    assert!(verified.fields().chip_key_masked);
    assert_eq!(verified.platform().debug(), Some(false));
    assert!(!Machine::milan().verify().unwrap().fields().author_key_enabled);
}

#[test]
fn an_unsettled_tcb_is_out_of_date_and_no_refusal() {
    for at in [0x38, 0x1e0, 0x1f0] {
        let verified = assert_accepted(Machine::milan(), |machine| machine.report[at] ^= 1);
        assert_eq!(verified.platform().tcb_status(), Some(TcbStatus::OutOfDate), "{at:#x}");
    }
}

// ---- revocation

fn with_list(change: impl FnOnce(&mut RevocationList)) -> Machine {
    let mut list = RevocationList::of("ARK-Milan");
    change(&mut list);
    Machine { lists: vec![list], ..Machine::milan() }
}

#[test]
fn a_current_list_is_consulted() {
    for machine in [with_list(|_| {}), with_list(|list| list.revoked.clear()), with_list(|list| list.revoked = vec![0])] {
        let verified = machine.verify().unwrap();

        let platform = verified.platform();
        assert!(platform.passed().iter().any(|passed| passed.link == Link::Revocation));
        assert!(platform.not_checked().is_empty());
        assert_eq!(platform.endorsed_at(), Some(1_748_736_000), "2025-06-01");
        assert_eq!(platform.valid_until(), Some(1_751_328_000), "2025-07-01");
    }
    let verified = Machine::milan().verify().unwrap();
    assert_eq!(verified.platform().endorsed_at(), None);
    assert_eq!(verified.platform().not_checked().len(), 1);
}

#[test]
fn a_revoked_authority_is_refused() {
    let refusal = refused(&with_list(|list| list.revoked = vec![3, 7, 9]));
    assert_eq!((refusal.link, refusal.fault), (Link::Revocation, Fault::Revoked), "{refusal}");
}

#[test]
fn a_list_that_does_not_hold_is_refused() {
    type Change = fn(&mut RevocationList);
    let cases: [(Fault, Change); 8] = [
        (Fault::Expired, |list| list.next_update = Some("20250615150639Z".into())),
        (Fault::NotYetValid, |list| list.this_update = "20250615150641Z".into()),
        (Fault::Malformed, |list| list.next_update = None),
        (Fault::Invalid, |list| list.signed_by = Key::Authority),
        (Fault::Invalid, |list| list.outer_algorithm = Pss { trailer: Some(1), ..PSS }),
        (Fault::Malformed, |list| list.extensions.push((vec![0x55, 0x1d, 28], true, tlv(0x30, &[])))),
        (Fault::Malformed, |list| list.this_update = "never".into()),
        (Fault::Invalid, |list| {
            list.algorithm = Pss { salt: 32, ..PSS };
            list.outer_algorithm = Pss { salt: 32, ..PSS };
        }),
    ];
    for (index, (fault, change)) in cases.into_iter().enumerate() {
        let refusal = refused(&with_list(change));
        assert_eq!((refusal.link, refusal.fault), (Link::Revocation, fault), "case {index}: {refusal}");
    }
    assert!(with_list(|list| list.next_update = Some("20250615150640Z".into())).verify().is_ok());
    assert!(with_list(|list| list.this_update = "20250615150640Z".into()).verify().is_ok());
}

#[test]
fn lists_of_others_do_not_count() {
    let mut machine = with_list(|list| {
        list.issuer = "ARK-Genoa".into();
        list.revoked = vec![7];
        list.signed_by = Key::Other;
    });
    assert_eq!(machine.verify().unwrap().platform().not_checked().len(), 1);

    machine.lists.push(RevocationList::of("ARK-Milan"));
    assert!(machine.verify().unwrap().platform().not_checked().is_empty());
    machine.lists.push(RevocationList { revoked: vec![7], ..RevocationList::of("ARK-Milan") });
    assert_eq!(refused(&machine).fault, Fault::Revoked, "each list must hold");
}

#[test]
fn lists_have_at_most_1_mib() {
    let machine = Machine::milan();
    let root = machine.root.der();
    let anchors = TrustAnchors::hardware().replace(Vendor::Amd, [root.clone()]).unwrap();
    let certificates = vec![machine.key.der(), machine.authority.der(), root];
    let is_too_long = |length: usize| {
        let endorsements =
            Endorsements { certificates: certificates.clone(), revocation_lists: vec![vec![0x30; length]], ..Endorsements::default() };
        let context = Context { anchors: &anchors, endorsements: &endorsements, now: NOW };
        let refusal = sev_snp::SevSnp.verify_report(&machine.signed_report(), &context).unwrap_err();
        assert_eq!((refusal.link, refusal.fault), (Link::Revocation, Fault::Malformed));
        refusal.detail == format!("a revocation list of {length} bytes")
    };

    assert_eq!([1 << 20, (1 << 20) + 1, (1 << 20) + 2].map(is_too_long), [false, true, true]);
}

#[test]
fn of_several_lists_the_oldest_counts() {
    let mut machine = with_list(|list| list.next_update = Some("20250801000000Z".into()));
    machine.lists.push(RevocationList { this_update: "20250520000000Z".into(), ..RevocationList::of("ARK-Milan") });
    for _ in 0..2 {
        let verified = machine.verify().unwrap();
        assert_eq!(verified.platform().endorsed_at(), Some(1_747_699_200), "2025-05-20");
        assert_eq!(verified.platform().valid_until(), Some(1_751_328_000), "2025-07-01");
        machine.lists.reverse();
    }
}
