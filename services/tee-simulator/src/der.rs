//! The few DER forms that Intel's SGX certificate extension is made of.

/// Tag, length, content.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    let length = content.len().to_be_bytes();
    if content.len() < 0x80 {
        der.extend(length.last());
    } else {
        let digits: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
        der.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
        der.extend(digits);
    }
    der.extend_from_slice(content);
    der
}

pub(crate) fn sequence(items: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &items.concat())
}

pub(crate) fn octet_string(bytes: &[u8]) -> Vec<u8> {
    tlv(0x04, bytes)
}

pub(crate) fn boolean(value: bool) -> Vec<u8> {
    tlv(0x01, &[if value { 0xff } else { 0 }])
}

pub(crate) fn enumerated(value: u8) -> Vec<u8> {
    tlv(0x0a, &[value])
}

pub(crate) fn integer(value: u16) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let significant: &[u8] = match bytes {
        [0, low] if low < 0x80 => &[low],
        [0, low] => &[0, low],
        [high, low] if high < 0x80 => &[high, low],
        [high, low] => &[0, high, low],
    };
    tlv(0x02, significant)
}

/// Object identifier under Intel's SGX arc 1.2.840.113741.1.13.1.
pub(crate) fn sgx_oid(arcs: &[u8]) -> Vec<u8> {
    let mut content = vec![0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
    content.extend_from_slice(arcs);
    tlv(0x06, &content)
}
