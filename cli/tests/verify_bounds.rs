//! Input that is no evidence, or too much of it: an answer, and never more than 64 MiB of memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod command;

use std::io::{BufWriter, Write as _};

use command::{EVIDENCE, TDX, evidence, judge, path_of, peak_memory_of_children, scratch};

const MIB: usize = 1 << 20;
/// More than any command may have resident.
const LIMIT: i64 = 64 << 20;
/// As small as an event can be.
const EVENT: &[u8] = br#"{"imr":0,"event_type":1},"#;
const EVENT_IN_TEXT: &[u8] = br#"{\"imr\":0,\"event_type\":1},"#;

/// Bytes, and how often they come. A file is written piece by piece: a command's peak memory includes that of the process it was started by.
type Piece<'a> = (&'a [u8], usize);

fn file(name: &str, pieces: &[Piece<'_>]) -> String {
    let path = scratch(name, b"");
    let mut file = BufWriter::new(std::fs::File::create(&path).unwrap());
    for (bytes, times) in pieces {
        for _ in 0..*times {
            file.write_all(bytes).unwrap();
        }
    }
    file.flush().unwrap();
    path
}

/// Twice packed: 200 MiB of zeros.
fn nested_gzip() -> Vec<u8> {
    evidence("cli/tests/testdata/nested.gz")
}

/// A certificate whose event log is `packed`.
fn certificate_with_log(packed: &[u8]) -> Vec<u8> {
    let mut log = b"ELGZv1".to_vec();
    log.extend_from_slice(packed);
    let mut parameters = rcgen::CertificateParams::default();
    let extension = |arc: u64, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let wrapped = [&[0x04, 0x84], length.as_slice(), payload].concat();
        rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 1, arc], wrapped)
    };
    parameters.custom_extensions = vec![extension(1, &[4, 0, 2, 0, 0x81, 0, 0, 0]), extension(2, &log)];
    parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn inputs() -> Vec<(&'static str, Vec<Piece<'static>>)> {
    vec![
        ("nothing", vec![]),
        ("one byte", vec![(&[4], 1)]),
        ("zeros", vec![(&[0], 10 * MIB)]),
        ("ones", vec![(&[0xff], 10 * MIB)]),
        ("digits, more than is read", vec![(b"0", 13 * MIB)]),
        ("digits", vec![(b"00", 6 * MIB - 1)]),
        ("base64", vec![(b"AAAA", 3 * MIB - 1)]),
        ("a page", vec![(b"<!doctype html><title>hello</title>", 1)]),
        ("other JSON", vec![(br#"{"hello":[1,2,3]}"#, 1)]),
        ("deep JSON", vec![(b"[", MIB)]),
        ("deep JSON in a field", vec![(br#"{"event_log":"#, 1), (b"[", 10 * MIB)]),
        ("deep objects", vec![(br#"{"quote":"#, MIB)]),
        ("an array of bytes", vec![(b"[", 1), (b"0,", 6 * MIB - 2), (b"0]", 1)]),
        ("very many events", vec![(br#"{"quote":"0400020081000000","event_log":["#, 1), (EVENT, 450_000), (b"{}]}", 1)]),
        (
            "very many events in text",
            vec![(br#"{"quote":"0400020081000000","event_log":"["#, 1), (EVENT_IN_TEXT, 350_000), (br#"{}]"}"#, 1)],
        ),
        ("a long quote", vec![(br#"{"quote":""#, 1), (b"04", 3 * MIB), (br#"","vm_config":""#, 1), (b"x", 5 * MIB), (br#""}"#, 1)]),
        ("a long document", vec![(br#"{"quote":"0400","app_compose":""#, 1), (br"\n", 5 * MIB), (br#""}"#, 1)]),
        ("an envelope that names much", vec![(&[0, 0, 0xfe, 0xff, 0xff, 0xff], 1), (&[4], 10 * MIB - 6)]),
        ("an envelope of very many events", vec![(&[0, 0, 0, 0xfe, 0xff, 0xff, 0x03], 1), (&[0], 10 * MIB - 7)]),
        ("MessagePack that names much", vec![(&[0xdf, 0xff, 0xff, 0xff, 0xff], 1), (&[0xa0], 10 * MIB - 5)]),
        ("nested MessagePack", vec![(&[0x81, 0xa1, b'x'], 1), (&[0x91], 10 * MIB - 3)]),
        ("nested CBOR", vec![(&[0x84, 0x43, 0xa1, 0x01, 0x26], 1), (&[0x81], 10 * MIB)]),
        ("much PEM", vec![(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", 180_000)]),
    ]
}

fn assert_refused(what: &str, path: &str, more: &[&str]) {
    let answer = judge(path, more);

    assert_eq!((answer.code, &answer.json()["verdict"]), (1, &"NOT VERIFIED".into()), "{what}: {}", answer.err);
    assert!(answer.failed().is_some(), "{what}");
    // The peak only grows, so the first input to exceed it is named.
    assert!(peak_memory_of_children() < LIMIT, "{what}: {} bytes", peak_memory_of_children());
}

#[test]
fn what_is_no_evidence_is_refused_in_at_most_64_mib() {
    for (what, pieces) in inputs() {
        assert_refused(what, &file("garbage", &pieces), &[]);
    }
    assert_refused("gzip in gzip", &scratch("gzip", &nested_gzip()), &[]);
    assert_refused("a certificate with gzip in gzip", &scratch("certificate", &certificate_with_log(&nested_gzip())), &[]);
}

#[test]
fn the_most_of_everything_fits_into_64_mib() {
    let quote = hex::encode(evidence(&format!("{TDX}quotes/f1c8503301126c30.bin")));
    let head = format!(r#"{{"quote":"{quote}","event_log":["#);
    let event = format!(r#"{{"imr":3,"event_type":134217729,"event":"x","event_payload":"{}"}},"#, "00".repeat(200));
    let last = event.trim_end_matches(',').to_owned() + r#"],"app_compose":""#;
    let pieces: [Piece<'_>; 5] = [(head.as_bytes(), 1), (event.as_bytes(), 16_000), (last.as_bytes(), 1), (b"x", 3 * MIB), (br#""}"#, 1)];
    let collateral = br#"{"pck_crl_issuer_chain":"","root_ca_crl":"","pck_crl":"","tcb_info_issuer_chain":"","tcb_info":""#;
    let rest = br#"","tcb_info_signature":"","qe_identity_issuer_chain":"","qe_identity":"","qe_identity_signature":""}"#;
    let collateral = file("collateral", &[(collateral, 1), (b"x", 4 * MIB - 400), (rest, 1)]);

    assert_refused("most", &file("most", &pieces), &["--collateral", &collateral, "--at", "2025-03-23T20:36:12Z"]);
}

#[test]
fn a_file_of_200_mib_is_not_read_whole() {
    let long = scratch("long", b"");
    std::fs::File::options().write(true).open(&long).unwrap().set_len(200 << 20).unwrap();
    let quote = path_of(&format!("{EVIDENCE}tdx/quotes/f1c8503301126c30.bin"));

    assert_refused("200 MiB", &long, &[]);
    for flag in ["--collateral", "--event-log", "--ccel", "--chain"] {
        assert_ne!(judge(&quote, &[flag, &long]).code, 0, "{flag}");
    }
    assert!(peak_memory_of_children() < LIMIT, "{} bytes", peak_memory_of_children());
}
