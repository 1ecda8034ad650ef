//! Binary logs of real machines, and what happens when bytes of them change.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeMap;

use dstack_event_log::{
    BootEvent, BootLog, BootLogError, DeclaredAlgorithm, EventLog, EventLogError, EventVersion, HashAlgorithm, MAX_BOOT_LOG_BYTES,
    MAX_EVENTS, PcrBank, RuntimeEvent,
};
use proptest::prelude::*;
use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/boot/");
/// Bytes of the header with one declared algorithm, without vendor data.
const HEADER: usize = 65;

#[derive(Deserialize)]
struct CcelCase {
    id: String,
    log: String,
    events: usize,
    rtmr: [String; 4],
}

#[derive(Deserialize)]
struct TpmCase {
    log: String,
    events: usize,
    pcr_sha1: BTreeMap<u32, String>,
    pcr_sha256: BTreeMap<u32, String>,
    pcr_sha384: BTreeMap<u32, String>,
}

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{DATA}{name}")).unwrap()
}

fn ccel_cases() -> Vec<CcelCase> {
    serde_json::from_slice(&must_read("ccel.json")).unwrap()
}

/// One SHA-384 algorithm, the given entries.
fn must_encode(events: Vec<BootEvent<'_>>) -> Vec<u8> {
    let empty = must_read("090dc18758380a5c.bin")[..HEADER].to_vec();
    let mut bytes = BootLog::parse(&empty).unwrap().to_bytes();
    let one = |event: &BootEvent<'_>| {
        let mut out =
            [event.register.to_le_bytes(), event.event_type.to_le_bytes(), u32::try_from(event.digests.len()).unwrap().to_le_bytes()]
                .concat();
        event.digests.iter().for_each(|(id, digest)| out.extend([id.to_le_bytes().as_slice(), digest].concat()));
        out.extend(u32::try_from(event.data.len()).unwrap().to_le_bytes());
        out.extend(event.data);
        out
    };
    events.iter().for_each(|event| bytes.extend(one(event)));
    bytes
}

fn entry<'a>(register: u32, event_type: u32, digest: &'a [u8], data: &'a [u8]) -> BootEvent<'a> {
    BootEvent { offset: 0, register, event_type, digests: vec![(0x000c, digest)], data }
}

#[test]
fn ccel_of_real_machines_replays_to_their_rtmrs() {
    let cases = ccel_cases();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let bytes = must_read(&case.log);

        let log = EventLog::parse_ccel(&bytes, &[]).unwrap();

        assert_eq!(BootLog::parse(&bytes).unwrap().events().len(), case.events, "{}", case.id);
        let replayed: Vec<String> = log.registers().0.iter().map(hex::encode).collect();
        assert_eq!(replayed, case.rtmr, "{}", case.id);
    }
}

#[test]
fn tpm_log_replays_to_the_pcrs_of_every_bank() {
    let case: TpmCase = serde_json::from_slice(&must_read("tpm.json")).unwrap();
    let bytes = must_read(&case.log);
    let log = BootLog::parse(&bytes).unwrap();
    assert_eq!(log.events().len(), case.events);

    for (algorithm, expected) in
        [(HashAlgorithm::Sha1, case.pcr_sha1), (HashAlgorithm::Sha256, case.pcr_sha256), (HashAlgorithm::Sha384, case.pcr_sha384)]
    {
        let bank = log.replay(algorithm).unwrap();

        let extended: BTreeMap<u32, String> =
            (0..30).filter(|pcr| bank.is_extended(*pcr)).map(|pcr| (pcr, bank.value(pcr).unwrap().to_string())).collect();
        assert_eq!(extended, expected, "{algorithm}");
    }
}

#[test]
fn bank_that_the_log_does_not_have_is_refused() {
    let bytes = must_read("dstack_tpm_eventlog.bin");

    let error = BootLog::parse(&bytes).unwrap().replay(HashAlgorithm::Sha512).unwrap_err();

    // Two entries of type EV_NO_ACTION come first.
    assert_eq!(error, BootLogError::MissingDigest { index: 2, offset: 765, algorithm: HashAlgorithm::Sha512 });
    assert_eq!(error.to_string(), "entry 2 at byte 765 has no SHA-512 digest");
}

#[test]
fn pcrs_start_as_the_profile_says() {
    let bank = PcrBank::new(HashAlgorithm::Sha256);

    for pcr in 0..24 {
        let expected = if (17..=22).contains(&pcr) { [0xff; 32] } else { [0; 32] };
        assert_eq!(bank.value(pcr).unwrap().as_bytes(), expected, "PCR {pcr}");
    }
    assert_eq!(bank.value(24), None);
    assert!(!bank.is_extended(24));
}

#[test]
fn extension_of_a_foreign_length_or_register_changes_nothing() {
    let mut bank = PcrBank::new(HashAlgorithm::Sha256);

    assert_eq!(bank.extend(24, &[1; 32]), None);
    assert_eq!(bank.extend(0, &[1; 31]), None);

    assert_eq!(bank, PcrBank::new(HashAlgorithm::Sha256));
}

#[test]
fn quote_digest_covers_the_selected_values_in_order() {
    let mut bank = PcrBank::new(HashAlgorithm::Sha1);
    bank.extend(1, &[7; 20]).unwrap();
    let value = |pcr| bank.value(pcr).unwrap().as_bytes();

    let composite = bank.composite(&[0, 1], HashAlgorithm::Sha256).unwrap();

    assert_eq!(composite, HashAlgorithm::Sha256.digest(&[value(0), value(1)]));
    assert_ne!(Some(composite), bank.composite(&[1, 0], HashAlgorithm::Sha256));
    assert_eq!(bank.composite(&[0, 24], HashAlgorithm::Sha256), None);
}

#[test]
fn runtime_event_goes_into_other_banks_with_their_hash() {
    let data: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(format!("{DATA}../logs/runtime_event_digests.json")).unwrap()).unwrap();
    for case in data {
        let payload = hex::decode(case["payload"].as_str().unwrap()).unwrap();
        for (version, key) in [(EventVersion::V1, "v1_sha256"), (EventVersion::V2, "v2_sha256")] {
            let event = RuntimeEvent::new(case["name"].as_str().unwrap(), payload.clone(), version);

            assert_eq!(event.digest_for(HashAlgorithm::Sha256).to_string(), case[key].as_str().unwrap(), "{} {key}", case["name"]);
        }
    }
}

#[test]
fn startup_locality_sets_the_start_of_pcr_0() {
    let digest = [5; 48];
    for locality in [0, 3, 4] {
        let told = [b"StartupLocality\0".as_slice(), &[locality]].concat();
        let bytes = must_encode(vec![entry(0, 3, &[0; 48], &told), entry(0, 8, &digest, b"")]);

        let bank = BootLog::parse(&bytes).unwrap().replay(HashAlgorithm::Sha384).unwrap();

        let mut start = [0; 48];
        start[47] = locality;
        assert_eq!(*bank.value(0).unwrap(), HashAlgorithm::Sha384.digest(&[&start, &digest]), "{locality}");
    }
}

#[test]
fn startup_locality_that_cannot_be_is_refused() {
    let refused = |events: Vec<BootEvent<'_>>| {
        let bytes = must_encode(events);
        let answer = BootLog::parse(&bytes).unwrap().replay(HashAlgorithm::Sha384);
        matches!(answer, Err(BootLogError::StartupLocality { .. }))
    };
    let told = |locality: &[u8]| [b"StartupLocality\0".as_slice(), locality].concat();

    assert!(refused(vec![entry(0, 3, &[0; 48], &told(&[1]))]), "locality 1 starts no TPM");
    assert!(refused(vec![entry(0, 3, &[0; 48], &told(&[]))]), "no locality");
    assert!(refused(vec![entry(0, 3, &[0; 48], &told(&[3, 3]))]), "two localities");
    assert!(refused(vec![entry(0, 8, &[5; 48], b""), entry(0, 3, &[0; 48], &told(&[3]))]), "after an extension");
    assert!(!refused(vec![entry(0, 4, &[0; 48], &told(&[1]))]), "another type's data is only data");
}

#[test]
fn entries_without_effect_on_rtmrs_are_left_out() {
    let (a, b) = ([1; 48], [2; 48]);
    let bytes = must_encode(vec![
        entry(0, 4, &a, b"MRTD"),
        entry(1, 3, &a, b"no action"),
        entry(5, 4, &a, b"no such register"),
        entry(u32::MAX, 3, &a, b"no register"),
        entry(4, 4, &b, b"RTMR3"),
    ]);

    let events = BootLog::parse(&bytes).unwrap().rtmr_events().unwrap();

    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].imr, events[0].event_type, events[0].digest.as_slice(), events[0].event_payload.as_slice()),
        (3, 4, b.as_slice(), b"RTMR3".as_slice())
    );
}

#[test]
fn register_beyond_the_last_pcr_is_refused() {
    let replayed = |register| {
        let bytes = must_encode(vec![entry(register, 4, &[1; 48], b"")]);
        BootLog::parse(&bytes).and_then(|log| log.replay(HashAlgorithm::Sha384)).map(|_| ())
    };

    assert_eq!(replayed(23), Ok(()));
    assert_eq!(replayed(24), Err(BootLogError::NoSuchRegister { index: 0, offset: HEADER, register: 24 }));
    assert_eq!(replayed(u32::MAX), Err(BootLogError::NoSuchRegister { index: 0, offset: HEADER, register: u32::MAX }));
}

#[test]
fn ccel_without_sha384_digest_is_refused() {
    let digest = [1; 32];
    let events = vec![BootEvent { digests: vec![(0x000b, &digest)], ..entry(1, 4, &[], b"") }];
    let mut bytes = must_read("dstack_tpm_eventlog.bin")[..73].to_vec();
    bytes.extend(&must_encode(events)[HEADER..]);

    let error = EventLog::parse_ccel(&bytes, &[]).unwrap_err();

    let missing = BootLogError::MissingDigest { index: 0, offset: 73, algorithm: HashAlgorithm::Sha384 };
    assert_eq!(error, EventLogError::BootLog(missing));
}

#[test]
fn runtime_events_follow_the_ccel() {
    let bytes = must_read("08e8363d55f4e4aa.bin");
    let event = RuntimeEvent::new("app-id", vec![1; 20], EventVersion::V1);

    let log = EventLog::parse_ccel(&bytes, std::slice::from_ref(&event)).unwrap();

    assert_eq!(log.boot_payload("app-id"), Some(event.payload));
    assert_eq!(log.events().len(), 19);
}

#[test]
fn digest_of_an_undeclared_algorithm_or_a_second_one_is_refused() {
    let digest = [1; 48];
    let parse = |digests| {
        let bytes = must_encode(vec![BootEvent { digests, ..entry(1, 4, &digest, b"") }]);
        BootLog::parse(&bytes).map(|log| log.events().len())
    };

    assert_eq!(parse(vec![(0x000c, digest.as_slice())]), Ok(1));
    assert_eq!(parse(vec![(0x000b, &digest)]), Err(BootLogError::UnexpectedDigest { index: 0, offset: HEADER, algorithm: 0x000b }));
    assert_eq!(
        parse(vec![(0x000c, &digest), (0x000c, &digest)]),
        Err(BootLogError::UnexpectedDigest { index: 0, offset: HEADER, algorithm: 0x000c })
    );
}

#[test]
fn header_must_declare_algorithms_that_can_be() {
    let good = must_read("090dc18758380a5c.bin")[..HEADER].to_vec();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        matches!(BootLog::parse(&bytes), Err(BootLogError::Algorithms { .. }))
    };
    // Layout: register, type, digest, length of the rest (33), signature at 32, number of algorithms at 56, algorithm at 60, length at 62.
    assert!(!refused(&|_| ()));
    assert!(refused(&|bytes| bytes[56] = 0), "none");
    assert!(refused(&|bytes| bytes[56] = 9), "too many");
    assert!(refused(&|bytes| bytes[62] = 47), "SHA-384 of 47 bytes");
    assert!(!refused(&|bytes| bytes[60] = 0x12), "an unknown algorithm of 48 bytes");
    assert!(refused(&|bytes| bytes[60..64].copy_from_slice(&[0x12, 0, 0, 0])), "an unknown algorithm of no bytes");
    assert!(!refused(&|bytes| bytes[60..64].copy_from_slice(&[0x12, 0, 64, 0])), "an unknown algorithm of 64 bytes");
    assert!(refused(&|bytes| bytes[60..64].copy_from_slice(&[0x12, 0, 65, 0])), "an unknown algorithm of 65 bytes");
    let twice = |bytes: &mut Vec<u8>| {
        bytes[28] += 4;
        bytes[56] = 2;
        bytes.splice(64..64, [0x0c, 0, 48, 0]);
    };
    assert!(refused(&twice), "one twice");
    let eight = |bytes: &mut Vec<u8>| {
        bytes[28] += 7 * 4;
        bytes[56] = 8;
        (0x20..0x27).for_each(|algorithm| drop(bytes.splice(64..64, [algorithm, 0, 1, 0])));
    };
    assert!(!refused(&eight), "as many as there may be");
}

#[test]
fn log_of_the_older_format_is_refused() {
    let good = must_read("090dc18758380a5c.bin");
    for (at, what) in [(4, "type"), (32, "signature"), (46, "format version")] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;

        assert_eq!(BootLog::parse(&bytes), Err(BootLogError::NotCryptoAgile), "{what}");
    }
}

#[test]
fn header_that_ends_inside_its_data_says_where() {
    let mut bytes = must_read("090dc18758380a5c.bin")[..HEADER].to_vec();
    bytes[64] = 1;

    let error = BootLog::parse(&bytes).unwrap_err();

    assert_eq!(error, BootLogError::Truncated { offset: HEADER, needed: 1, what: "the header's vendor data" });
}

#[test]
fn vendor_data_of_the_header_is_skipped() {
    // Its header carries seven bytes "td-shim".
    let bytes = must_read("d9cd052549c551fe.bin");

    assert_eq!(BootLog::parse(&bytes).unwrap().events().len(), 5);
}

#[test]
fn padding_is_one_byte_value_to_the_end() {
    let bytes = must_encode(vec![entry(1, 4, &[1; 48], b"")]);
    let parse = |padding: &[u8]| {
        let padded = [bytes.as_slice(), padding].concat();
        BootLog::parse(&padded).map(|log| log.events().len())
    };

    assert_eq!(parse(&[0xff; 100]), Ok(1));
    assert_eq!(parse(&[0; 100]), Ok(1));
    assert!(parse(&[[0xff; 99].as_slice(), &[0]].concat()).is_err());
    assert!(parse(&[[0; 99].as_slice(), &[1]].concat()).is_err());
}

#[test]
fn entry_without_digest_is_refused() {
    let without = must_encode(vec![entry(1, 4, &[1; 48], b""), BootEvent { digests: Vec::new(), ..entry(1, 3, &[], b"") }]);
    let zeros = [must_encode(Vec::new()).as_slice(), &[0; 16], &[0xff; 16]].concat();

    assert_eq!(BootLog::parse(&without), Err(BootLogError::NoDigest { index: 1, offset: 131 }));
    assert_eq!(BootLog::parse(&zeros), Err(BootLogError::NoDigest { index: 0, offset: HEADER }));
}

#[test]
fn no_truncation_of_a_real_log_is_taken_for_the_whole() {
    for name in ["08e8363d55f4e4aa.bin", "d9cd052549c551fe.bin", "dstack_tpm_eventlog.bin"] {
        let bytes = must_read(name);
        let whole = BootLog::parse(&bytes).unwrap();
        let end = whole.to_bytes().len() + if name.starts_with('d') && !name.starts_with("ds") { 7 } else { 0 };
        for length in 0..end {
            let fewer = BootLog::parse(&bytes[..length]).map_or(0, |log| log.events().len());

            assert!(fewer < whole.events().len(), "{name} cut to {length} bytes");
        }
    }
}

#[test]
fn log_is_limited_in_bytes_and_entries() {
    assert_eq!(BootLog::parse(&vec![0; MAX_BOOT_LOG_BYTES + 1]), Err(BootLogError::TooLong { got: MAX_BOOT_LOG_BYTES + 1 }));
    let mut longest = must_encode(Vec::new());
    longest.resize(MAX_BOOT_LOG_BYTES, 0xff);
    assert_eq!(BootLog::parse(&longest).map(|log| log.events().len()), Ok(0));
    let entries = |count| must_encode(vec![entry(1, 3, &[0; 48], b""); count]);

    assert_eq!(BootLog::parse(&entries(MAX_EVENTS)).map(|log| log.events().len()), Ok(MAX_EVENTS));
    assert_eq!(BootLog::parse(&entries(MAX_EVENTS + 1)), Err(BootLogError::TooManyEvents));
}

#[test]
fn ten_mebibytes_of_zeros_and_an_entry_of_four_gibibytes_are_refused() {
    assert!(BootLog::parse(&vec![0; 10 << 20]).is_err());
    let mut bytes = must_encode(vec![entry(1, 4, &[1; 48], b"")]);
    let length_at = bytes.len() - 4;
    bytes[length_at..].fill(0xfe);

    let error = BootLog::parse(&bytes).unwrap_err();

    assert_eq!(error, BootLogError::Truncated { offset: length_at + 4, needed: 0xfefe_fefe, what: "an entry's data" });
}

#[test]
fn known_algorithms_have_their_registry_values() {
    for (algorithm, id, length) in
        [(HashAlgorithm::Sha1, 4, 20), (HashAlgorithm::Sha256, 11, 32), (HashAlgorithm::Sha384, 12, 48), (HashAlgorithm::Sha512, 13, 64)]
    {
        assert_eq!((algorithm.id(), algorithm.digest_length()), (id, length));
        assert_eq!(HashAlgorithm::from_id(id), Some(algorithm));
        assert_eq!(algorithm.digest(&[b"a", b"bc"]).as_bytes().len(), length);
        assert_eq!(algorithm.digest(&[b"a", b"bc"]), algorithm.digest(&[b"abc"]));
    }
    assert_eq!(HashAlgorithm::from_id(0x12), None);
    let abc = HashAlgorithm::Sha1.digest(&[b"abc"]);
    assert_eq!(abc.to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    assert_eq!(format!("{abc:?}"), abc.to_string());
    assert_eq!(abc.as_ref(), abc.as_bytes());
}

proptest! {
    #[test]
    fn written_log_reads_back(events in proptest::collection::vec((0_u32..24, any::<u32>(), proptest::array::uniform32(any::<u8>()), proptest::collection::vec(any::<u8>(), 0..80)), 0..20)) {
        let digest = |seed: &[u8; 32]| [seed.as_slice(), &seed[..16]].concat();
        let digests: Vec<Vec<u8>> = events.iter().map(|(_, _, seed, _)| digest(seed)).collect();
        let built: Vec<BootEvent<'_>> =
            events.iter().zip(&digests).map(|((register, kind, _, data), digest)| entry(*register, *kind, digest, data)).collect();
        let bytes = must_encode(built.clone());

        let log = BootLog::parse(&bytes).unwrap();

        prop_assert_eq!(log.to_bytes(), bytes.clone());
        prop_assert_eq!(log.algorithms(), [DeclaredAlgorithm { id: 12, digest_length: 48 }].as_slice());
        let same = |(read, built): (&BootEvent<'_>, &BootEvent<'_>)| BootEvent { offset: 0, ..read.clone() } == *built;
        prop_assert!(log.events().len() == built.len() && log.events().iter().zip(&built).all(same));
    }

    #[test]
    fn changed_bytes_never_panic(at in 0_usize..6_000, value in any::<u8>(), cut in 0_usize..6_100) {
        let mut bytes = must_read("08e8363d55f4e4aa.bin");
        bytes[at] = value;
        bytes.truncate(cut.max(1));
        if let Ok(log) = EventLog::parse_ccel(&bytes, &[]) {
            for index in 0..log.events().len() {
                prop_assert!(log.describe(index).is_some());
            }
        }
    }

    #[test]
    fn any_payload_is_described(event_type in any::<u32>(), known in 0_u32..24, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in [event_type, known, 0x8000_0000 + known, 0x8000_00e0] {
            let _any_words = dstack_event_log::Content::parse(kind, &payload).to_string();
        }
    }
}
