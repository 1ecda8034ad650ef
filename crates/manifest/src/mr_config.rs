//! What the host binds a VM to before it starts: MRCONFIGID on TDX, HOST_DATA on SEV-SNP.

use serde::{Deserialize, Deserializer};
use sha2::Sha256;
use sha3::{Digest as _, Keccak256};

use crate::{AppId, ComposeHash, Digest32, InstanceId, KeyProviderKind};

/// Prefix of the hashed document, NUL included.
const DOCUMENT_TAG: &[u8] = b"dstack-mr-config-v3:\0";
/// Largest document that is read.
const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// Why text is not a version 3 document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MrConfigError {
    /// Longer than any document.
    #[error("mr_config document of {length} bytes exceeds the limit of {MAX_DOCUMENT_BYTES}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Not JSON of the expected form, or with a field nobody knows.
    #[error("mr_config document is malformed: {reason}")]
    Malformed {
        /// What the parser met.
        reason: String,
    },
    /// Another version.
    #[error("mr_config document has version {version}, this program reads version 3")]
    Version {
        /// The number.
        version: u32,
    },
}

/// The version 3 document: the identity that a VM was launched for. Known by its hash, so its bytes are never written again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MrConfigDocument {
    version: u32,
    /// Application, where one was chosen.
    #[serde(default)]
    pub app_id: Option<AppId>,
    /// Hash of its `app-compose.json`.
    pub compose_hash: ComposeHash,
    /// GPU policy.
    #[serde(default)]
    pub gpu_policy_hash: Option<Digest32>,
    /// Where its keys come from.
    pub key_provider: KeyProviderKind,
    /// Who that is; empty where nobody was named.
    #[serde(default, deserialize_with = "hex_bytes")]
    pub key_provider_id: Vec<u8>,
    /// Instance, where it was known.
    #[serde(default)]
    pub instance_id: Option<InstanceId>,
    /// Scripts that run before the application.
    #[serde(default)]
    pub init_script_hashes: Option<Vec<Digest32>>,
}

impl MrConfigDocument {
    /// Reads the document. Unknown fields are refused: they may restrict what the VM is for.
    ///
    /// Errors: [`MrConfigError`].
    pub fn parse(text: &str) -> Result<Self, MrConfigError> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(MrConfigError::TooLong { length: text.len() });
        }
        let document: Self = serde_json::from_str(text).map_err(|error| MrConfigError::Malformed { reason: error.to_string() })?;
        if document.version == 3 { Ok(document) } else { Err(MrConfigError::Version { version: document.version }) }
    }
}

fn hex_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    hex::decode(text).map_err(serde::de::Error::custom)
}

/// Version 3: `SHA-256("dstack-mr-config-v3:" || 00 || document)`, 32 bytes; HOST_DATA on SEV-SNP. The document's bytes as they are.
#[must_use]
pub fn mr_config_hash_v3(document: &str) -> [u8; 32] {
    Sha256::new().chain_update(DOCUMENT_TAG).chain_update(document).finalize().into()
}

/// Version 3 of MRCONFIGID: `03 || hash of the document || zeros`, 48 bytes.
#[must_use]
pub fn mr_config_id_v3(document: &str) -> [u8; 48] {
    tagged(3, &mr_config_hash_v3(document))
}

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

    /// Vector `v3-real-snp`: HOST_DATA of a genuine report.
    const GENUINE: &str = concat!(
        r#"{"app_id":"86e59625be93207bc2351c4d1bba20037cec8e16","#,
        r#""compose_hash":"86e59625be93207bc2351c4d1bba20037cec8e168da6b18f559af5af657b7a23","#,
        r#""instance_id":"d378c00e65112c4235bfeb46c6a0f98fd02145a3","key_provider":"kms","key_provider_id":""#,
        "3059301306072a8648ce3d020106082a8648ce3d0301070342000419b2457dd9b8aa6446d980f136fff7812ecd6c77740eeb0e28b10d56c0c00028",
        "a5b6e59dcea307d583bd1f70769e9c116df2bcfb1758a95d8613e7de1c8482c0",
        r#"","version":3}"#
    );

    #[test]
    fn version_3_matches_a_genuine_report() {
        let hash = "783f0057820acb99249af56cc3b07b4e8d80f65183167cba9cf437bb680f742f";

        assert_eq!(hex::encode(mr_config_hash_v3(GENUINE)), hash);
        assert_eq!(hex::encode(mr_config_id_v3(GENUINE)), format!("03{hash}{}", "00".repeat(15)));
    }

    #[test]
    fn version_3_document_is_read() {
        let document = MrConfigDocument::parse(GENUINE).unwrap();

        assert_eq!(document.app_id, Some(document.compose_hash.default_app_id()));
        assert_eq!(document.key_provider, KeyProviderKind::Kms);
        assert_eq!(document.key_provider_id.len(), 91);
        assert_eq!(document.instance_id.unwrap().to_string(), "d378c00e65112c4235bfeb46c6a0f98fd02145a3");
        assert_eq!((document.gpu_policy_hash, document.init_script_hashes), (None, None));
    }

    #[test]
    fn version_3_document_is_refused_when_it_is_of_another_version_has_unknown_fields_or_repeats_one() {
        let malformed = |text: &str| matches!(MrConfigDocument::parse(text), Err(MrConfigError::Malformed { .. }));
        let changed = |from: &str, to: &str| GENUINE.replacen(from, to, 1);

        assert_eq!(MrConfigDocument::parse(&changed("\"version\":3", "\"version\":4")), Err(MrConfigError::Version { version: 4 }));
        assert!(malformed(&changed(",\"version\":3", "")), "the version has no default");
        assert!(malformed(&changed("{", "{\"future\":1,")));
        assert!(malformed(&changed("{", "{\"version\":3,")));
        assert!(malformed(&changed("\"kms\"", "\"vault\"")));
        assert!(malformed(&changed("3059", "305")));
        let long = format!("{}{GENUINE}", " ".repeat(MAX_DOCUMENT_BYTES));
        assert_eq!(MrConfigDocument::parse(&long), Err(MrConfigError::TooLong { length: long.len() }));
    }
}
