//! MRCONFIGID: what the host binds a TD to before it starts.

use sha3::{Digest as _, Keccak256};

use crate::{AppId, ComposeHash, KeyProviderKind};

/// Version 1: `01 || compose hash || zeros`, 48 bytes.
#[must_use]
pub fn mr_config_id_v1(compose_hash: &ComposeHash) -> [u8; 48] {
    tagged(1, compose_hash.as_bytes())
}

/// Version 2: `02 || keccak256(compose hash || app id || kind || key provider id) || zeros`, 48 bytes.
#[must_use]
pub fn mr_config_id_v2(compose_hash: &ComposeHash, app_id: &AppId, kind: KeyProviderKind, key_provider_id: &[u8]) -> [u8; 48] {
    let digest = Keccak256::new()
        .chain_update(compose_hash.as_bytes())
        .chain_update(app_id.as_bytes())
        .chain_update([kind.mr_config_byte()])
        .chain_update(key_provider_id)
        .finalize();
    tagged(2, &digest.into())
}

fn tagged(version: u8, digest: &[u8; 32]) -> [u8; 48] {
    let mut id = [0_u8; 48];
    let (tag, rest) = id.split_at_mut(1);
    tag.fill(version);
    rest.split_at_mut(32).0.copy_from_slice(digest);
    id
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    /// Vector `v2-real`, from a genuine quote.
    #[test]
    fn version_2_matches_a_genuine_quote() {
        let compose_hash: ComposeHash = "258bbd49ae0fd84652c84c4c834055b1d8bcdc443cd8e172578f320b46304505".parse().unwrap();
        let provider = hex::decode("1b7a49378403249b6986a907844cab0921eca32dd47e657f3c10311ccaeccf8b").unwrap();

        let id = mr_config_id_v2(&compose_hash, &compose_hash.default_app_id(), KeyProviderKind::Local, &provider);

        assert_eq!(hex::encode(id), "02b39b4a3e30408e01900a3c6f4ebb49ff7ca8218872a90d64541d06aff47df553000000000000000000000000000000");
    }

    #[test]
    fn version_1_is_the_tagged_compose_hash() {
        let id = mr_config_id_v1(&ComposeHash::new([0xab; 32]));

        assert_eq!(hex::encode(id), format!("01{}{}", "ab".repeat(32), "00".repeat(15)));
    }
}
