//! Messages of a real client, in every division, and everything that is wrong with a message.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use std::sync::Arc;

use dstack_ingress::{ClientHello, ClientHelloError, ClientHelloReader, DomainNameError, MAX_CLIENT_HELLO_BYTES};
use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const NAME: &str = "0123456789abcdef0123456789abcdef01234567-8443s.apps.example.com";

/// The first bytes that rustls sends.
fn of_rustls(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The handshake message inside records.
fn message_of(records: &[u8]) -> Vec<u8> {
    records[5..].to_vec()
}

/// The message in records of at most `size` bytes.
fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn read(bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
    ClientHelloReader::new().push(bytes)
}

/// A minimal message with these extensions.
fn with_extensions(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (number, content) in extensions {
        block.extend_from_slice(&number.to_be_bytes());
        block.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        block.extend_from_slice(content);
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend_from_slice(&u16::try_from(block.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&block);
    with_header(&body)
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1, length[1], length[2], length[3]][..], body].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap();
    [&(length + 3).to_be_bytes()[..], &[0], &length.to_be_bytes(), name].concat()
}

fn refused(message: &[u8]) -> ClientHelloError {
    read(&in_records(message, 1 << 14)).unwrap_err()
}

fn malformed(field: &'static str) -> ClientHelloError {
    ClientHelloError::Malformed { field }
}

#[test]
fn reads_what_rustls_sends() {
    let hello = read(&of_rustls(NAME, &[b"h2", b"http/1.1"])).unwrap().unwrap();

    assert_eq!(hello.server_name.unwrap().as_str(), NAME);
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(hello.offers_tls13);
    assert!(!hello.has_encrypted_client_hello);
}

#[test]
fn every_truncation_asks_for_more() {
    let bytes = of_rustls(NAME, &[]);
    for length in 0..bytes.len() {
        assert_eq!(read(&bytes[..length]), Ok(None), "{length}");
    }
}

#[test]
fn the_largest_message_is_read_in_the_smallest_records() {
    let padding = vec![0; MAX_CLIENT_HELLO_BYTES - 61];
    let message = with_extensions(&[(0, &server_name(b"a.example")), (21, &padding[..65000 - 61])]);

    let hello = read(&in_records(&message, 1)).unwrap().unwrap();

    assert_eq!(hello.server_name.unwrap().as_str(), "a.example");
    let mut reader = ClientHelloReader::new();
    let bytes = in_records(&message, 1 << 14);
    let (last, first) = bytes.split_last().unwrap();
    assert!(first.iter().all(|byte| reader.push(&[*byte]) == Ok(None)));
    assert!(reader.push(&[*last]).unwrap().is_some());
}

#[test]
fn early_data_after_the_message_is_not_looked_at() {
    let bytes = [of_rustls(NAME, &[]), vec![23, 3, 3, 0, 1, 9]].concat();

    assert!(read(&bytes).unwrap().is_some());
}

#[test]
fn a_client_without_name_or_extensions_is_read() {
    let mut body = vec![3, 1];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0, 0x2f, 1, 0]);

    let hello = read(&in_records(&with_header(&body), 100)).unwrap().unwrap();

    assert_eq!(hello, ClientHello { server_name: None, alpn: Vec::new(), offers_tls13: false, has_encrypted_client_hello: false });
}

#[test]
fn an_encrypted_inner_message_is_passed_by() {
    let message = with_extensions(&[(0, &server_name(b"public.example")), (0xfe0d, &[1, 2, 3])]);

    let hello = read(&in_records(&message, 1 << 14)).unwrap().unwrap();

    assert!(hello.has_encrypted_client_hello);
    assert_eq!(hello.server_name.unwrap().as_str(), "public.example");
}

#[test]
fn another_protocol_is_told_at_its_first_bytes() {
    assert_eq!(read(b"G"), Err(ClientHelloError::NotTls { record_type: b'G', major: 0 }));
    assert_eq!(read(&[22, 2]), Err(ClientHelloError::NotTls { record_type: 22, major: 2 }));
    assert_eq!(read(&[21, 3, 3, 0, 2, 1, 0]), Err(ClientHelloError::NotTls { record_type: 21, major: 0 }));
}

#[test]
fn records_and_messages_have_limits() {
    assert_eq!(read(&[22, 3, 1, 0, 0]), Err(ClientHelloError::RecordLength { got: 0 }));
    assert_eq!(read(&[22, 3, 1, 0x40, 1]), Err(ClientHelloError::RecordLength { got: 16385 }));
    assert_eq!(read(&[22, 3, 1, 0, 1, 2]), Err(ClientHelloError::NotClientHello { got: 2 }));
    assert_eq!(read(&[22, 3, 1, 0, 4, 1, 1, 0, 1]), Err(ClientHelloError::TooLong { got: 65537 }));
    assert_eq!(read(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Ok(None));
}

#[test]
fn a_second_message_in_the_record_is_refused() {
    let mut message = message_of(&of_rustls(NAME, &[]));
    message.push(1);

    assert_eq!(refused(&message), ClientHelloError::Trailing);
    // Also when its byte has not come yet.
    let bytes = in_records(&message, 1 << 14);
    assert_eq!(read(&bytes[..bytes.len() - 1]), Err(ClientHelloError::Trailing));
}

#[test]
fn each_malformed_field_is_named() {
    let body = |change: fn(&mut Vec<u8>)| {
        let mut message = with_extensions(&[(0, &server_name(b"a.example"))]);
        let mut body = message.split_off(4);
        change(&mut body);
        refused(&with_header(&body))
    };

    assert_eq!(body(|body| body[0] = 2), malformed("version"));
    assert_eq!(body(|body| body.truncate(20)), malformed("random"));
    assert_eq!(body(|body| body[34] = 33), malformed("session id"));
    assert_eq!(body(|body| body[36] = 1), malformed("cipher suites"));
    assert_eq!(body(|body| body[36] = 200), malformed("cipher suites"));
    assert_eq!(body(|body| body[39] = 0), malformed("compression methods"));
    assert_eq!(body(|body| body.push(0)), malformed("extensions"));
    assert_eq!(body(|body| body[42] -= 1), malformed("extensions"));
    assert_eq!(body(|body| body[46] += 1), malformed("extension"));
}

#[test]
fn each_malformed_extension_is_named() {
    let extension = |number: u16, content: &[u8]| refused(&with_extensions(&[(number, content)]));
    let name = server_name(b"a.example");

    assert_eq!(extension(0, &[]), malformed("server name extension"));
    assert_eq!(extension(0, &[name.clone(), vec![0]].concat()), malformed("server name extension"));
    assert_eq!(extension(0, &[&[0, 12, 1], &name[3..]].concat()), malformed("server name extension"));
    assert_eq!(extension(0, &server_name(b"")), ClientHelloError::ServerName(DomainNameError::Length { got: 0 }));
    assert_eq!(extension(0, &server_name(b"192.0.2.1")), ClientHelloError::ServerName(DomainNameError::Address));
    assert_eq!(extension(0, &server_name(b"a\0b")), ClientHelloError::ServerName(DomainNameError::Byte { offset: 1, byte: 0 }));
    assert_eq!(extension(16, &[0, 0]), malformed("ALPN extension"));
    assert_eq!(extension(16, &[0, 1, 0]), malformed("ALPN extension"));
    assert_eq!(extension(16, &[0, 3, 2, b'h', b'2', 0]), malformed("ALPN extension"));
    assert_eq!(extension(43, &[0]), malformed("supported versions extension"));
    assert_eq!(extension(43, &[1, 3]), malformed("supported versions extension"));
    assert_eq!(refused(&with_extensions(&[(7, &[]), (7, &[])])), ClientHelloError::Repeated { extension: 7 });
    let many: Vec<(u16, &[u8])> = (100..165).map(|number| (number, &[][..])).collect();
    assert_eq!(refused(&with_extensions(&many)), malformed("extensions"));
    assert!(read(&in_records(&with_extensions(&many[..64]), 1 << 14)).unwrap().is_some());
}

proptest! {
    #[test]
    fn division_into_records_and_reads_changes_nothing(record in 1_usize..700, read_size in 1_usize..700) {
        let bytes = in_records(&message_of(&of_rustls(NAME, &[b"h2"])), record);
        let mut reader = ClientHelloReader::new();
        let mut found = None;
        for part in bytes.chunks(read_size) {
            prop_assert!(found.is_none());
            found = reader.push(part).unwrap();
        }
        let name = found.unwrap().server_name.unwrap();
        prop_assert_eq!(name.as_str(), NAME);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = read(&bytes);
        let _ = read(&in_records(&with_header(&bytes), 50));
    }
}
