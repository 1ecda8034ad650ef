//! The first message of a TLS client: reading it in pieces gives what reading it at once gives.
#![no_main]

use dstack_fuzz as _;
use dstack_ingress::{ClientHelloReader, PlatformName, RecordNames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = ClientHelloReader::new().push(data);
    let mut reader = ClientHelloReader::new();
    let mut ended = Ok(None);
    for byte in data {
        ended = reader.push(std::slice::from_ref(byte));
        if !matches!(ended, Ok(None)) {
            break;
        }
    }
    assert_eq!(whole.is_ok(), ended.is_ok());
    if let Ok(Some(hello)) = whole {
        assert_eq!(ended, Ok(Some(hello.clone())));
        if let Some(name) = hello.server_name {
            let _ = (RecordNames::of(&name), name.split().map(|(label, _)| PlatformName::parse(label)));
        }
    }
});
