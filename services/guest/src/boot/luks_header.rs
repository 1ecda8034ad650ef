//! The LUKS2 header of the data disk lies on a disk that the host may rewrite. It is copied to memory, checked here and
//! used from there, so that a host can neither choose a null cipher nor swap the header after the check.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Where the encrypted data starts: 16 MiB.
pub const DATA_OFFSET_BYTES: u64 = 16 << 20;
/// Part of the header area that is copied: metadata and the one key slot.
pub const HEADER_BYTES: usize = 1 << 20;
/// What a LUKS header starts with.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";

const CIPHER: &str = "aes-xts-plain64";
const KEY_BYTES: u64 = 64;
const BINARY_HEADER_BYTES: usize = 4096;
/// Magic of a second copy.
const SECOND_MAGIC: [u8; 6] = *b"SKUL\xba\xbe";
/// Name of the checksum's algorithm in the binary header.
const ALGORITHM: std::ops::Range<usize> = 72..104;
/// The checksum in the binary header; SHA-256 fills the first half.
const CHECKSUM: std::ops::Range<usize> = 448..512;
const VERSION: [u8; 2] = [0, 2];
/// Sizes of binary header plus JSON that the format allows.
const HEADER_SIZES: [usize; 9] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data disk's LUKS2 header is refused: {reason}")]
pub struct HeaderError {
    /// What is wrong with it.
    pub reason: String,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError { reason: reason.into() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    keyslots: BTreeMap<String, Keyslot>,
    tokens: BTreeMap<String, serde_json::Value>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, KeyDigest>,
    #[allow(dead_code, reason = "only its shape is checked here")]
    config: Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u64,
    af: AntiForensic,
    area: Area,
    kdf: Kdf,
    #[serde(default)]
    #[allow(dead_code, reason = "any priority unlocks with the same key")]
    priority: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AntiForensic {
    r#type: String,
    stripes: u64,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    hash: String,
    #[allow(dead_code, reason = "the passphrase is a key; no count makes it weaker")]
    iterations: u64,
    #[allow(dead_code, reason = "not secret")]
    salt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyDigest {
    r#type: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    #[allow(dead_code, reason = "checked by cryptsetup")]
    iterations: u64,
    #[allow(dead_code, reason = "checked by cryptsetup")]
    salt: String,
    #[allow(dead_code, reason = "checked by cryptsetup")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[allow(dead_code, reason = "checked by cryptsetup")]
    json_size: String,
    #[allow(dead_code, reason = "checked by cryptsetup")]
    keyslots_size: String,
}

/// Checks the copy of a header and removes its second copy, so that what was checked is what is used.
///
/// `header`: the first [`HEADER_BYTES`] of the disk, untrusted.
/// Errors: anything but one key slot and one segment with exactly our cipher, key size, offset and sector size.
pub fn check_and_pin(header: &mut [u8]) -> Result<(), HeaderError> {
    let Some((binary, rest)) = header.split_first_chunk::<BINARY_HEADER_BYTES>() else { return refuse("it is too short") };
    if !binary.starts_with(&MAGIC) || binary.get(6..8) != Some(&VERSION) {
        return refuse("it is not LUKS version 2");
    }
    let size = binary.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    let size = usize::try_from(size).unwrap_or(0);
    let json_bytes = size.saturating_sub(BINARY_HEADER_BYTES);
    let Some(json) = rest.get(..json_bytes).filter(|_| HEADER_SIZES.contains(&size)) else {
        return refuse(format!("it claims a size of {size} bytes"));
    };
    let end = json.iter().position(|&byte| byte == 0).unwrap_or(json.len());
    let metadata: Metadata = match serde_json::from_slice(json.get(..end).unwrap_or_default()) {
        Ok(metadata) => metadata,
        Err(error) => return refuse(format!("metadata: {error}")),
    };
    check(&metadata)?;
    if !has_own_checksum(binary, json) {
        return refuse("its checksum is wrong");
    }
    if let Some(second) = header.get_mut(size..size.saturating_mul(2)) {
        second.fill(0);
    }
    // A reader that dislikes the first copy looks for a second one at each of these places, whatever the first one says.
    match HEADER_SIZES.iter().find(|&&at| header.get(at..).is_some_and(|rest| rest.starts_with(&SECOND_MAGIC))) {
        Some(at) => refuse(format!("it has another header at {at}")),
        None => Ok(()),
    }
}

/// SHA-256 over both parts of a header, its checksum field taken as zero. Source: LUKS2 On-Disk Format, 2.1.
fn has_own_checksum(binary: &[u8; BINARY_HEADER_BYTES], json: &[u8]) -> bool {
    let mut blank = *binary;
    let (Some(algorithm), Some(claimed)) = (binary.get(ALGORITHM), binary.get(CHECKSUM)) else { return false };
    if let Some(field) = blank.get_mut(CHECKSUM) {
        field.fill(0);
    }
    let digest = Sha256::new().chain_update(blank).chain_update(json).finalize();
    algorithm.starts_with(b"sha256\0") && claimed.starts_with(&digest)
}

fn check(metadata: &Metadata) -> Result<(), HeaderError> {
    let (Some((slot_id, slot)), 1) = (metadata.keyslots.iter().next(), metadata.keyslots.len()) else {
        return refuse(format!("it has {} key slots, not 1", metadata.keyslots.len()));
    };
    let (Some((segment_id, segment)), 1) = (metadata.segments.iter().next(), metadata.segments.len()) else {
        return refuse(format!("it has {} segments, not 1", metadata.segments.len()));
    };
    let (Some(digest), 1) = (metadata.digests.values().next(), metadata.digests.len()) else {
        return refuse(format!("it has {} digests, not 1", metadata.digests.len()));
    };
    let offset = DATA_OFFSET_BYTES.to_string();
    let area_end = slot.area.offset.parse::<u64>().ok().zip(slot.area.size.parse::<u64>().ok()).and_then(|(at, len)| at.checked_add(len));
    let facts = [
        (metadata.tokens.is_empty(), "it has tokens"),
        (slot.r#type == "luks2" && slot.key_size == KEY_BYTES, "its key slot is not a 64-byte key"),
        (slot.af.r#type == "luks1" && slot.af.stripes == 4000 && slot.af.hash == "sha256", "its key slot is split in another way"),
        (slot.area.r#type == "raw" && slot.area.encryption == CIPHER && slot.area.key_size == KEY_BYTES, "its key slot has another cipher"),
        (area_end.is_some_and(|end| end <= HEADER_BYTES as u64), "its key slot lies outside the header"),
        (slot.kdf.r#type == "pbkdf2" && slot.kdf.hash == "sha256", "its key derivation is not PBKDF2 with SHA-256"),
        (segment.r#type == "crypt" && segment.encryption == CIPHER, "its cipher is not aes-xts-plain64"),
        (segment.offset == offset && segment.size == "dynamic" && segment.iv_tweak == "0", "its data does not start at 16 MiB"),
        (segment.sector_size == 512, "its sectors do not have 512 bytes"),
        (digest.r#type == "pbkdf2" && digest.hash == "sha256", "its digest is not PBKDF2 with SHA-256"),
        (digest.keyslots == [slot_id.as_str()] && digest.segments == [segment_id.as_str()], "its digest belongs to something else"),
    ];
    match facts.into_iter().find(|(holds, _)| !holds) {
        Some((_, reason)) => refuse(reason),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AA=="}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AA==","digest":"AA=="}},"config":{"json_size":"12288","keyslots_size":"16744448"}}"#;

    fn must_build(json: &str) -> Vec<u8> {
        let mut header = vec![0_u8; HEADER_BYTES];
        header[..6].copy_from_slice(&MAGIC);
        header[6..8].copy_from_slice(&VERSION);
        header[8..16].copy_from_slice(&(16_u64 << 10).to_be_bytes());
        header[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        header[16 << 10] = 0xff;
        must_seal(&mut header);
        header
    }

    fn must_seal(header: &mut [u8]) {
        header[72..78].copy_from_slice(b"sha256");
        header[448..512].fill(0);
        let digest = Sha256::digest(&header[..16 << 10]);
        header[448..480].copy_from_slice(&digest);
    }

    #[test]
    fn a_broken_checksum_is_refused() {
        for at in [0x1b, 448, 479, 5000] {
            let mut header = must_build(GOOD);
            header[at] ^= 1;
            assert!(check_and_pin(&mut header).is_err(), "{at}");
        }
    }

    #[test]
    fn another_header_further_on_is_refused() {
        for at in [32 << 10, 64 << 10, 512 << 10] {
            let mut header = must_build(GOOD);
            header[at..at + 6].copy_from_slice(&SECOND_MAGIC);
            assert!(check_and_pin(&mut header).is_err(), "{at}");
        }
    }

    #[test]
    fn our_header_is_accepted_and_loses_its_second_copy() {
        let mut header = must_build(GOOD);

        check_and_pin(&mut header).unwrap();

        assert_eq!(header[16 << 10], 0);
    }

    #[test]
    fn each_deviation_is_refused() {
        let deviations = [
            (r#""encryption":"aes-xts-plain64","sector_size":512"#, r#""encryption":"cipher_null-ecb","sector_size":512"#),
            (r#""sector_size":512"#, r#""sector_size":4096"#),
            (r#""sector_size":512"#, r#""sector_size":512,"integrity":{"type":"none"}"#),
            (r#""offset":"16777216""#, r#""offset":"0""#),
            (r#""size":"dynamic""#, r#""size":"4096""#),
            (r#""iv_tweak":"0""#, r#""iv_tweak":"1""#),
            (r#""tokens":{}"#, r#""tokens":{"0":{"type":"systemd-tpm2"}}"#),
            (r#""key_size":64,"af""#, r#""key_size":32,"af""#),
            (r#""stripes":4000"#, r#""stripes":1"#),
            (r#""encryption":"aes-xts-plain64","key_size":64"#, r#""encryption":"cipher_null-ecb","key_size":64"#),
            (r#""size":"258048""#, r#""size":"99999999""#),
            (
                r#""type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AA=="}}"#,
                r#""type":"argon2id","hash":"sha256","iterations":1000,"salt":"AA=="}}"#,
            ),
            (r#""keyslots":["0"]"#, r#""keyslots":["1"]"#),
            (r#""keyslots_size":"16744448""#, r#""keyslots_size":"16744448","requirements":{"mandatory":["online-reencrypt"]}"#),
        ];
        for (good, bad) in deviations {
            let json = GOOD.replacen(good, bad, 1);
            assert_ne!(json, GOOD, "{good}");
            assert!(check_and_pin(&mut must_build(&json)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_field_out_of_range_is_refused() {
        for size in [0_u64, 4096, 16 << 20, u64::MAX] {
            let mut header = must_build(GOOD);
            header[8..16].copy_from_slice(&size.to_be_bytes());

            assert!(check_and_pin(&mut header).is_err(), "{size}");
        }
        assert!(check_and_pin(&mut []).is_err());
    }
}
