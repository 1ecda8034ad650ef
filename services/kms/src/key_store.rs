//! The files of `cert_dir`: what a KMS is.
//!
//! ```text
//! root-ca.{crt,key}  tmp-ca.{crt,key}  rpc.{crt,key}  root-k256.key (32 bytes)  epoch-seeds  rpc-domain  bootstrap-info.json
//! ```
//! Keys are PKCS#8 PEM unless said otherwise; they and the seeds are sealed ([`crate::sealing`]) where a platform key is configured. All
//! files are 0600. The directory appears as a whole, see [`crate::bootstrap`].

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::RwLock,
};

use dstack_api::UserFacing;
use dstack_attester::AttesterError;
use dstack_key_hierarchy::{Epochs, InvalidKey, K256Key, P256Key, RootKeys, Secret};
use dstack_ra_tls::{AuthorityError, CertKey, CertificateAuthority, KeyError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    key_backend::{SignedKeys, WholeRoot},
    sealing::{OpenError, Vault},
};

pub(crate) const ROOT_CRT: &str = "root-ca.crt";
pub(crate) const ROOT_KEY: &str = "root-ca.key";
pub(crate) const TEMP_CRT: &str = "tmp-ca.crt";
pub(crate) const TEMP_KEY: &str = "tmp-ca.key";
pub(crate) const RPC_CRT: &str = "rpc.crt";
pub(crate) const RPC_KEY: &str = "rpc.key";
pub(crate) const RPC_DOMAIN: &str = "rpc-domain";
pub(crate) const K256_KEY: &str = "root-k256.key";
/// Seeds of the epochs; absent in the reference layout, where there is only the first.
pub(crate) const EPOCHS: &str = "epoch-seeds";
pub(crate) const BOOTSTRAP_INFO: &str = "bootstrap-info.json";
/// Keys exist when all of these do.
const REQUIRED: [&str; 7] = [TEMP_CRT, TEMP_KEY, ROOT_CRT, ROOT_KEY, RPC_CRT, RPC_KEY, K256_KEY];
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a sealed file does not open.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SealedFileError(#[from] OpenError);

/// Why the keys cannot be used or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// Some files are there and others are not.
    #[error("{} lacks {}", dir.display(), missing.join(", "))]
    Incomplete {
        /// `cert_dir`.
        dir: PathBuf,
        /// Names of the missing files.
        missing: Vec<&'static str>,
    },
    /// Something else is where the keys should be.
    #[error("{} is not empty and holds no KMS keys", dir.display())]
    Foreign {
        /// `cert_dir`.
        dir: PathBuf,
    },
    /// Others may read a key.
    #[error("{} can be read by other users (mode {mode:o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Certificate, key and bootstrap information are not of one KMS.
    #[error("{} belongs to other keys", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be opened or sealed.
    #[error("sealed file {}", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SealedFileError,
    },
    /// New keys where there are keys.
    #[error("{} holds the keys of a KMS already", dir.display())]
    Exists {
        /// `cert_dir`.
        dir: PathBuf,
    },
    /// There is a TEE and it does not vouch for the new keys.
    #[error("evidence over the keys")]
    Evidence(#[source] AttesterError),
    /// Reading or writing.
    #[error("{action} {}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Making a certificate.
    #[error("making a certificate")]
    Authority(#[from] AuthorityError),
    /// Making a certificate's key.
    #[error("making a certificate key")]
    CertKey(#[from] KeyError),
    /// Encoding a key.
    #[error("encoding a key")]
    Key(#[from] InvalidKey),
}

impl UserFacing for KeyStoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } => "kms/keys-incomplete",
            Self::Foreign { .. } => "kms/cert-dir-foreign",
            Self::Exposed { .. } => "kms/keys-exposed",
            Self::Malformed { .. } => "kms/keys-malformed",
            Self::Mismatch { .. } => "kms/keys-mismatch",
            Self::Sealed { source: SealedFileError(OpenError::NotSealed), .. } => "kms/keys-not-sealed",
            Self::Sealed { .. } => "kms/keys-sealed",
            Self::Exists { .. } => "kms/keys-exist",
            Self::Evidence(_) => "kms/own-evidence",
            Self::Io { .. } => "kms/cert-dir-io",
            Self::Authority(_) | Self::CertKey(_) | Self::Key(_) => "kms/certificate",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Incomplete { dir, .. } | Self::Foreign { dir } => {
                format!("restore {} from a backup, or set cert_dir to a path that does not exist to make a new KMS", dir.display())
            }
            Self::Exposed { path, .. } => format!("find out who read {}, then chmod 600 it", path.display()),
            Self::Malformed { path, .. } | Self::Mismatch { path } => format!("restore {} from a backup", path.display()),
            Self::Sealed { source: SealedFileError(OpenError::NotSealed), path } => {
                format!("move the directory of {} elsewhere and start once with --import and its new path", path.display())
            }
            Self::Sealed { .. } => {
                "start on the machine, system and sealing provider that sealed it; else onboard from a replica or restore from shares"
                    .to_owned()
            }
            Self::Exists { dir } => format!("use the keys in {}, or set cert_dir to a path that does not exist", dir.display()),
            Self::Evidence(_) => "repair the TEE's quoting service; keys are made only where their origin can be proven".to_owned(),
            Self::Io { path, .. } => {
                format!("check space and permissions of {}; cert_dir must not itself be a mount point", path.display())
            }
            Self::Authority(_) | Self::CertKey(_) | Self::Key(_) => "read the log; this is a defect worth reporting".to_owned(),
        }
    }
}

/// Public record of the bootstrap, in `bootstrap-info.json` (hex) and in `GetMeta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapInfo {
    /// SubjectPublicKeyInfo DER of the root CA.
    #[serde(with = "dstack_api::json::hex_bytes")]
    pub ca_pubkey: Vec<u8>,
    /// Compressed secp256k1 root key.
    #[serde(with = "dstack_api::json::hex_bytes")]
    pub k256_pubkey: Vec<u8>,
    /// Evidence over both, made where the keys were made; empty when that was outside a TEE.
    #[serde(with = "dstack_api::json::hex_bytes")]
    pub attestation: Vec<u8>,
}

/// All keys of a KMS, loaded.
pub(crate) struct KeyStore {
    pub(crate) keys: RootKeys,
    pub(crate) root: CertificateAuthority,
    pub(crate) temp: CertificateAuthority,
    pub(crate) rpc_key: CertKey,
    pub(crate) bootstrap_info: Option<BootstrapInfo>,
    /// Name of the HTTPS server as of the last start, or as somebody chose at the first.
    pub(crate) domain: Option<String>,
    /// Read once; changed with the file.
    pub(crate) epochs: RwLock<Epochs>,
    signed: SignedKeys,
}

impl KeyStore {
    /// Loads the keys; none if `dir` is missing or empty.
    pub(crate) fn load(dir: &Path, vault: &Vault) -> Result<Option<Self>, KeyStoreError> {
        let missing: Vec<&'static str> = REQUIRED.into_iter().filter(|name| !dir.join(name).exists()).collect();
        if missing.len() == REQUIRED.len() {
            return if is_absent_or_empty(dir)? { Ok(None) } else { Err(KeyStoreError::Foreign { dir: dir.to_owned() }) };
        }
        if !missing.is_empty() {
            return Err(KeyStoreError::Incomplete { dir: dir.to_owned(), missing });
        }
        let ca = P256Key::from_pkcs8_pem(&secret_text(dir, ROOT_KEY, vault)?).map_err(|_| malformed(dir, ROOT_KEY, "a P-256 key"))?;
        let k256 = Secret::from_slice(&secret(dir, K256_KEY, vault)?).map_err(|_| malformed(dir, K256_KEY, "32 bytes"))?;
        let k256 = K256Key::from_scalar(&k256).map_err(|_| malformed(dir, K256_KEY, "a secp256k1 key"))?;
        let store = Self {
            root: authority(dir, ROOT_CRT, cert_key(&ca)?)?,
            temp: authority(dir, TEMP_CRT, stored_cert_key(dir, TEMP_KEY, vault)?)?,
            rpc_key: stored_cert_key(dir, RPC_KEY, vault)?,
            bootstrap_info: read_bootstrap_info(dir)?,
            domain: dir.join(RPC_DOMAIN).exists().then(|| read_text(dir, RPC_DOMAIN)).transpose()?,
            epochs: RwLock::new(read_epochs(dir, vault, &ca)?),
            keys: RootKeys { ca, k256 },
            signed: SignedKeys::default(),
        };
        store.check_bootstrap_info(dir)?;
        Ok(Some(store))
    }

    /// Who makes keys from these.
    pub(crate) fn backend(&self) -> WholeRoot<'_> {
        WholeRoot { root: &self.keys, epochs: &self.epochs, signed: &self.signed }
    }

    fn check_bootstrap_info(&self, dir: &Path) -> Result<(), KeyStoreError> {
        let Some(info) = &self.bootstrap_info else { return Ok(()) };
        if info.ca_pubkey == self.root.spki_der() && info.k256_pubkey == self.keys.k256.public_key() {
            return Ok(());
        }
        Err(KeyStoreError::Mismatch { path: dir.join(BOOTSTRAP_INFO) })
    }
}

/// The same key for the certificate library.
pub(crate) fn cert_key(key: &P256Key) -> Result<CertKey, KeyError> {
    CertKey::from_pkcs8_der(&key.to_pkcs8_der().map_err(|_| KeyError::NotP256)?)
}

/// Writes a secret file of `cert_dir` as a whole, sealed.
pub(crate) fn write_secret(dir: &Path, name: &str, bytes: &[u8], vault: &Vault) -> Result<(), KeyStoreError> {
    let sealed = vault.seal(name, bytes).map_err(|source| KeyStoreError::Sealed { path: dir.join(name), source: source.into() })?;
    write(dir, name, &sealed)
}

/// Writes a file of `cert_dir` as a whole.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), KeyStoreError> {
    let path = dir.join(name);
    dstack_service::fs::write_atomic(&path, bytes, 0o600).map_err(|source| KeyStoreError::Io { action: "writing", path, source })
}

fn is_absent_or_empty(dir: &Path) -> Result<bool, KeyStoreError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(KeyStoreError::Io { action: "reading", path: dir.to_owned(), source }),
    }
}

fn malformed(dir: &Path, name: &str, what: &'static str) -> KeyStoreError {
    KeyStoreError::Malformed { path: dir.join(name), what }
}

fn authority(dir: &Path, name: &str, key: CertKey) -> Result<CertificateAuthority, KeyStoreError> {
    let pem = read_text(dir, name)?;
    CertificateAuthority::load(&pem, key).map_err(|_| KeyStoreError::Mismatch { path: dir.join(name) })
}

fn stored_cert_key(dir: &Path, name: &str, vault: &Vault) -> Result<CertKey, KeyStoreError> {
    CertKey::from_pem(&secret_text(dir, name, vault)?).map_err(|_| malformed(dir, name, "a P-256 key"))
}

fn read_epochs(dir: &Path, vault: &Vault, ca: &P256Key) -> Result<Epochs, KeyStoreError> {
    if !dir.join(EPOCHS).exists() {
        return Ok(Epochs::first(ca));
    }
    Epochs::decode(&secret(dir, EPOCHS, vault)?).map_err(|_| malformed(dir, EPOCHS, "epochs"))
}

fn read_bootstrap_info(dir: &Path) -> Result<Option<BootstrapInfo>, KeyStoreError> {
    if !dir.join(BOOTSTRAP_INFO).exists() {
        return Ok(None);
    }
    serde_json::from_str(&read_text(dir, BOOTSTRAP_INFO)?).map(Some).map_err(|_| malformed(dir, BOOTSTRAP_INFO, "bootstrap information"))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    use io::Read as _;
    let io_error = |source| KeyStoreError::Io { action: "reading", path: path.to_owned(), source };
    let mut bytes = Zeroizing::new(Vec::new());
    fs::File::open(path).map_err(io_error)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

fn read_secret(dir: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let path = dir.join(name);
    let metadata = fs::metadata(&path).map_err(|source| KeyStoreError::Io { action: "reading", path: path.clone(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyStoreError::Exposed { path, mode });
    }
    read(&path)
}

/// The content of a secret file, opened.
fn secret(dir: &Path, name: &str, vault: &Vault) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let bytes = read_secret(dir, name)?;
    vault.open(name, &bytes).map_err(|source| KeyStoreError::Sealed { path: dir.join(name), source: source.into() })
}

fn secret_text(dir: &Path, name: &str, vault: &Vault) -> Result<Zeroizing<String>, KeyStoreError> {
    let bytes = secret(dir, name, vault)?;
    std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned())).map_err(|_| malformed(dir, name, "text"))
}

fn read_text(dir: &Path, name: &str) -> Result<String, KeyStoreError> {
    String::from_utf8(read(&dir.join(name))?.to_vec()).map_err(|_| malformed(dir, name, "text"))
}
