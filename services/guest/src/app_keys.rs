//! `.appkeys.json`: the keys of this application instance, between `dstack-init` and the guest agent. Root only, memory only.

use std::{fs, io, path::Path};

use dstack_key_hierarchy::{AppKeys, EnvSecret, K256Key, RecoverableSignature, Secret};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::boot::received_keys::EpochAppKeys;

const MAX_FILE_BYTES: u64 = 256 << 10;

/// The document. Erased on drop; no `Debug` content.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct AppKeysDocument {
    /// 32 bytes, hex.
    disk_crypt_key: String,
    /// 32 bytes, hex; empty without a KMS.
    env_crypt_key: String,
    /// 32 bytes, hex.
    k256_key: String,
    /// 65 bytes, hex; empty without a KMS.
    k256_signature: String,
    /// The gateway this app trusts; may be empty.
    #[zeroize(skip)]
    pub gateway_app_id: String,
    /// Root certificate of the app's certificates, PEM.
    #[zeroize(skip)]
    pub ca_cert: String,
    /// Where the keys came from.
    pub key_provider: ProviderDocument,
    /// Of the keys above; absent where there are no epochs.
    #[zeroize(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    /// Application keys of earlier epochs, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    older_epochs: Vec<OlderEpoch>,
}

/// What an application can still ask of an earlier epoch.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct OlderEpoch {
    #[zeroize(skip)]
    epoch: u32,
    /// 32 bytes, hex.
    k256_key: String,
    /// 65 bytes, hex.
    k256_signature: String,
}

/// The application key of one epoch.
#[derive(Debug)]
pub struct EpochKey {
    /// Its number; 0 where there are no epochs.
    pub epoch: u32,
    /// The key.
    pub k256_key: K256Key,
    /// The KMS's signature over its public key; none without a KMS.
    pub k256_signature: Option<RecoverableSignature>,
}

/// Where keys came from, with what it takes to ask again.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub enum ProviderDocument {
    /// Random at this boot.
    None {
        /// Key of the app CA, PKCS#8 PEM.
        key: String,
    },
    /// A KMS.
    Kms {
        /// The one that answered.
        #[zeroize(skip)]
        url: String,
        /// SPKI DER of its root, hex.
        #[zeroize(skip)]
        pubkey: String,
        /// Key of the temporary client authority, PKCS#8 PEM. Not secret: the KMS gives it to anyone.
        #[zeroize(skip)]
        tmp_ca_key: String,
        /// Certificate of the temporary client authority, PEM.
        #[zeroize(skip)]
        tmp_ca_cert: String,
    },
}

impl std::fmt::Debug for AppKeysDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AppKeysDocument(..)")
    }
}

/// A file that does not hold usable keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppKeysError {
    /// It cannot be read.
    #[error("read the application keys")]
    Read(#[from] io::Error),
    /// It is not the document, or a key is none.
    #[error("the application keys are malformed: {field}")]
    Malformed {
        /// Where.
        field: String,
    },
}

impl AppKeysDocument {
    /// The document for keys.
    #[must_use]
    pub fn new(keys: &AppKeys, ca_cert: String, gateway_app_id: String, key_provider: ProviderDocument) -> Self {
        Self {
            disk_crypt_key: hex::encode(keys.disk_crypt_key.expose()),
            env_crypt_key: keys.env_crypt_key.as_ref().map(|key| hex::encode(key.secret().expose())).unwrap_or_default(),
            k256_key: hex::encode(keys.k256_key.scalar().expose()),
            k256_signature: keys.k256_signature.map(hex::encode).unwrap_or_default(),
            gateway_app_id,
            ca_cert,
            key_provider,
            epoch: None,
            older_epochs: Vec::new(),
        }
    }

    /// The document with epochs; `epoch`: the keys' own, 0 where there are none.
    #[must_use]
    pub fn with_epochs(mut self, epoch: u32, older: &[EpochAppKeys]) -> Self {
        self.epoch = Some(epoch).filter(|epoch| *epoch != 0);
        self.older_epochs = older
            .iter()
            .map(|EpochAppKeys { epoch, keys }| OlderEpoch {
                epoch: *epoch,
                k256_key: hex::encode(keys.k256_key.scalar().expose()),
                k256_signature: keys.k256_signature.map(hex::encode).unwrap_or_default(),
            })
            .collect();
        self
    }

    /// The application's keys of every epoch that is handed out, the current one first.
    ///
    /// Errors: a field that is no key.
    pub fn epoch_keys(&self) -> Result<Vec<EpochKey>, AppKeysError> {
        let current = (self.epoch.unwrap_or(0), &self.k256_key, &self.k256_signature);
        let older = self.older_epochs.iter().map(|older| (older.epoch, &older.k256_key, &older.k256_signature));
        std::iter::once(current)
            .chain(older)
            .map(|(epoch, key, signature)| Ok(EpochKey { epoch, k256_key: k256_key(key)?, k256_signature: k256_signature(signature)? }))
            .collect()
    }

    /// Reads the document.
    ///
    /// Errors: unreadable or malformed.
    pub fn load(path: &Path) -> Result<Self, AppKeysError> {
        use io::Read as _;
        let mut text = zeroize::Zeroizing::new(String::new());
        fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        // The parser's message could quote a key.
        serde_json::from_str(&text)
            .map_err(|error| AppKeysError::Malformed { field: format!("line {} column {}", error.line(), error.column()) })
    }

    /// The JSON text. Secret.
    ///
    /// Errors: none in practice.
    pub fn to_json(&self) -> Result<zeroize::Zeroizing<Vec<u8>>, AppKeysError> {
        serde_json::to_vec(self).map(zeroize::Zeroizing::new).map_err(|_| AppKeysError::Malformed { field: "encoding".to_owned() })
    }

    /// The keys as keys.
    ///
    /// Errors: a field that is no key.
    pub fn keys(&self) -> Result<AppKeys, AppKeysError> {
        let env_crypt_key = match self.env_crypt_key.as_str() {
            "" => None,
            text => Some(EnvSecret::new(secret("env_crypt_key", text)?)),
        };
        Ok(AppKeys {
            disk_crypt_key: secret("disk_crypt_key", &self.disk_crypt_key)?,
            env_crypt_key,
            k256_key: k256_key(&self.k256_key)?,
            k256_signature: k256_signature(&self.k256_signature)?,
        })
    }

    /// The measured provider: `{"name","id"}` as JSON text.
    #[must_use]
    pub fn provider_info(&self) -> String {
        match &self.key_provider {
            ProviderDocument::None { .. } => provider_info("none", ""),
            ProviderDocument::Kms { pubkey, .. } => provider_info("kms", pubkey),
        }
    }
}

fn malformed(field: &str) -> AppKeysError {
    AppKeysError::Malformed { field: field.to_owned() }
}

fn secret(field: &str, text: &str) -> Result<Secret<32>, AppKeysError> {
    let bytes = zeroize::Zeroizing::new(hex::decode(text).map_err(|_| malformed(field))?);
    Secret::from_slice(&bytes).map_err(|_| malformed(field))
}

fn k256_key(text: &str) -> Result<K256Key, AppKeysError> {
    K256Key::from_scalar(&secret("k256_key", text)?).map_err(|_| malformed("k256_key"))
}

fn k256_signature(text: &str) -> Result<Option<RecoverableSignature>, AppKeysError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(text).map_err(|_| malformed("k256_signature"))?;
    bytes.try_into().map(Some).map_err(|_| malformed("k256_signature"))
}

/// Payload of the `key-provider` event.
#[must_use]
pub fn provider_info(name: &str, id: &str) -> String {
    format!(r#"{{"name":"{name}","id":"{id}"}}"#)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use dstack_key_hierarchy::LocalAppKeys;

    use super::*;

    fn must_document() -> AppKeysDocument {
        let local = LocalAppKeys::from_seed(&Secret::new([7; 32])).unwrap();
        let key = local.ca_key.to_pkcs8_pem().unwrap().to_string();
        AppKeysDocument::new(&local.keys, "CA".to_owned(), String::new(), ProviderDocument::None { key })
    }

    #[test]
    fn keys_survive_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        fs::write(&path, must_document().to_json().unwrap()).unwrap();

        let keys = AppKeysDocument::load(&path).unwrap().keys().unwrap();

        let local = LocalAppKeys::from_seed(&Secret::new([7; 32])).unwrap();
        assert_eq!(keys.disk_crypt_key, local.keys.disk_crypt_key);
        assert_eq!(keys.k256_key.public_key(), local.keys.k256_key.public_key());
        assert!(keys.env_crypt_key.is_none() && keys.k256_signature.is_none());
    }

    #[test]
    fn the_file_has_the_names_that_other_tools_read() {
        let json: serde_json::Value = serde_json::from_slice(&must_document().to_json().unwrap()).unwrap();

        let mut names: Vec<&String> = json.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["ca_cert", "disk_crypt_key", "env_crypt_key", "gateway_app_id", "k256_key", "k256_signature", "key_provider"]);
        assert!(json["key_provider"]["None"]["key"].as_str().unwrap().contains("PRIVATE KEY"));
    }

    #[test]
    fn provider_info_keeps_name_before_id() {
        assert_eq!(must_document().provider_info(), r#"{"name":"none","id":""}"#);
    }

    #[test]
    fn malformed_files_are_errors_without_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        fs::write(&path, r#"{"disk_crypt_key":"SECRET", "#).unwrap();

        let error = AppKeysDocument::load(&path).unwrap_err();

        assert!(!error.to_string().contains("SECRET"), "{error}");
    }
}
