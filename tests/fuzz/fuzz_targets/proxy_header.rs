//! PROXY headers: what is read is written and read again.
#![no_main]

use dstack_fuzz as _;
use dstack_ingress::{MAX_PROXY_HEADER_BYTES, ProxyHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((header, length))) = ProxyHeader::parse(data) {
        assert!(length <= data.len().min(MAX_PROXY_HEADER_BYTES));
        let written = header.encode();
        assert!(matches!(ProxyHeader::parse(&written), Ok(Some((_, whole))) if whole == written.len()));
    }
    let _ = std::str::from_utf8(data).map(|text| text.parse::<dstack_ingress::AddressRecord>());
});
