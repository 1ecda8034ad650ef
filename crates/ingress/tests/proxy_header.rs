//! PROXY headers of both versions.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use std::net::SocketAddr;

use dstack_ingress::{Endpoints, ProxyHeader, ProxyHeaderError};
use proptest::prelude::*;

fn proxied(source: &str, destination: &str) -> ProxyHeader {
    ProxyHeader::Proxied(Endpoints { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
}

fn malformed(field: &'static str) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    Err(ProxyHeaderError::Malformed { field })
}

#[test]
fn reads_version_1() {
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nGET /";
    assert_eq!(ProxyHeader::parse(line), Ok(Some((proxied("192.0.2.1:56324", "198.51.100.7:443"), 45))));
    let line = b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n";
    assert_eq!(ProxyHeader::parse(line), Ok(Some((proxied("[2001:db8::1]:1", "[::1]:65535"), line.len()))));
    assert_eq!(ProxyHeader::parse(b"PROXY UNKNOWN whatever it says\r\n"), Ok(Some((ProxyHeader::Local, 32))));
}

#[test]
fn refuses_malformed_version_1() {
    let parse = |line: &str| ProxyHeader::parse(format!("{line}\r\n").as_bytes());

    assert_eq!(parse("PROXY UDP4 192.0.2.1 198.51.100.7 1 2"), malformed("family"));
    assert_eq!(parse("PROXY TCP4 2001:db8::1 198.51.100.7 1 2"), malformed("address"));
    assert_eq!(parse("PROXY TCP4 192.0.2.1 198.51.100.7 65536 2"), malformed("port"));
    assert_eq!(parse("PROXY TCP4 192.0.2.1 198.51.100.7 +1 2"), malformed("port"));
    assert_eq!(parse("PROXY TCP4 192.0.2.1 198.51.100.7 01 2"), malformed("port"));
    assert_eq!(parse("PROXY TCP4 192.0.2.1 198.51.100.7 1"), malformed("line"));
    assert_eq!(parse("PROXY TCP4 192.0.2.1 198.51.100.7 1 2 3"), malformed("line"));
    assert_eq!(ProxyHeader::parse(&[b"PROXY ".as_slice(), &[b'a'; 101]].concat()), Err(ProxyHeaderError::TooLong { limit: 107 }));
    assert_eq!(ProxyHeader::parse(&[b"PROXY ".as_slice(), &[b'a'; 100]].concat()), Ok(None));
    assert_eq!(ProxyHeader::parse(b"PROXY \xff\r\n"), malformed("line"));
}

#[test]
fn reads_version_2_and_skips_attributes() {
    let header = proxied("192.0.2.1:56324", "198.51.100.7:443");
    let mut bytes = header.encode();
    assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, 28))));

    bytes[15] = 12 + 4;
    bytes.extend_from_slice(&[0x04, 0, 1, 0]);
    bytes.extend_from_slice(b"\x16\x03\x01");

    assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, 32))));
    assert_eq!(ProxyHeader::parse(&ProxyHeader::Local.encode()), Ok(Some((ProxyHeader::Local, 16))));
}

#[test]
fn refuses_malformed_version_2() {
    let with = |position: usize, byte: u8| {
        let mut bytes = proxied("192.0.2.1:1", "198.51.100.7:2").encode();
        bytes[position] = byte;
        ProxyHeader::parse(&bytes)
    };

    assert_eq!(with(12, 0x11), malformed("version"));
    assert_eq!(with(12, 0x22), malformed("command"));
    assert_eq!(with(13, 0x21), malformed("addresses"));
    assert_eq!(with(13, 0x31), Ok(Some((ProxyHeader::Local, 28))));
    assert_eq!(with(14, 8), Err(ProxyHeaderError::TooLong { limit: 2048 }));
    assert_eq!(with(15, 11), malformed("addresses"));
    assert_eq!(with(0, b'G'), Err(ProxyHeaderError::Absent));
    assert_eq!(ProxyHeader::parse(b"\x16\x03\x01"), Err(ProxyHeaderError::Absent));
}

#[test]
fn every_truncation_asks_for_more() {
    let v2 = proxied("[2001:db8::1]:1", "[::1]:2").encode();
    for bytes in [v2.as_slice(), b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"] {
        for length in 1..bytes.len() {
            assert_eq!(ProxyHeader::parse(&bytes[..length]), Ok(None), "{length}");
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(source: SocketAddr, destination: SocketAddr) {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let bytes = ProxyHeader::Proxied(Endpoints { source, destination }).encode();

        let (header, length) = ProxyHeader::parse(&bytes).unwrap().unwrap();

        prop_assert_eq!(length, bytes.len());
        let ProxyHeader::Proxied(read) = header else { panic!("local") };
        prop_assert_eq!(canonical(read.source), canonical(source));
        prop_assert_eq!(canonical(read.destination), canonical(destination));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = ProxyHeader::parse(&bytes);
        let _ = ProxyHeader::parse(&[b"PROXY ".as_slice(), &bytes].concat());
        let _ = ProxyHeader::parse(&[b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &bytes].concat());
    }
}
