//! Keys come into being, all or nothing: made at a first start, received from a replica, restored from shares, or imported.
//!
//! Everything is written to `.<name>.staging` beside `cert_dir` and synced; one rename makes it `cert_dir`. A crash before the
//! rename leaves no keys (the next start makes others), a crash after it leaves all of them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use dstack_key_hierarchy::{Epochs, RootKeys};
use dstack_ra_tls::{CaProfile, CertKey, CertificateAuthority, Validity};
use rand_core::OsRng;
use sha3::{Digest as _, Keccak256};

use crate::{
    domain::Domain,
    key_store::{
        BOOTSTRAP_INFO, BootstrapInfo, EPOCHS, K256_KEY, KeyStore, KeyStoreError, ROOT_CRT, ROOT_KEY, RPC_CRT, RPC_DOMAIN, RPC_KEY,
        TEMP_CRT, TEMP_KEY, cert_key, write,
    },
    sealing::Vault,
    server::{Attest, rpc_chain},
};

/// Authorities with less than this left are signed anew with the same key; so are those that are not valid yet, made under a wrong clock.
const CA_RENEWAL_SECONDS: u64 = 365 * 24 * 3600;

/// Where keys lie, and what new ones are made with.
pub(crate) struct Site<'a> {
    /// `cert_dir`.
    pub(crate) dir: &'a Path,
    /// How its files are sealed.
    pub(crate) vault: &'a Vault,
    /// Name of the HTTPS server, for new keys.
    pub(crate) domain: &'a Domain,
    /// Evidence of this machine.
    pub(crate) attest: &'a Attest<'a>,
    /// Unix seconds.
    pub(crate) now: u64,
}

/// Keys that are to become those of this KMS.
pub(crate) struct NewKeys {
    /// The root.
    pub(crate) root: RootKeys,
    /// Of the temporary authority.
    pub(crate) temp: CertKey,
    /// Epochs of the system the root comes from; those of a new root otherwise.
    pub(crate) epochs: Option<Epochs>,
    /// Where the root comes from.
    pub(crate) origin: Origin,
}

/// Where a root comes from.
pub(crate) enum Origin {
    /// Made here, which evidence is to prove.
    Made,
    /// Brought from elsewhere, with the record of where it was made, if there is one.
    Brought(Option<BootstrapInfo>),
}

impl NewKeys {
    /// New random keys.
    pub(crate) fn generate() -> Result<Self, KeyStoreError> {
        Ok(Self { root: RootKeys::generate(&mut OsRng), temp: CertKey::generate()?, epochs: None, origin: Origin::Made })
    }
}

impl Site<'_> {
    /// Loads the keys; none where there are none.
    pub(crate) fn load(&self) -> Result<Option<KeyStore>, KeyStoreError> {
        let _lock = self.lock()?;
        self.load_locked()
    }

    /// Loads the keys, or makes them where there are none.
    pub(crate) fn load_or_create(&self) -> Result<KeyStore, KeyStoreError> {
        let _lock = self.lock()?;
        match self.load_locked()? {
            Some(store) => Ok(store),
            None => self.create_locked(&NewKeys::generate()?),
        }
    }

    /// Makes `keys` those of this KMS.
    ///
    /// Errors: it has keys already, and they stay.
    pub(crate) fn create(&self, keys: &NewKeys) -> Result<KeyStore, KeyStoreError> {
        let _lock = self.lock()?;
        if self.load_locked()?.is_some() {
            return Err(KeyStoreError::Exists { dir: self.dir.to_owned() });
        }
        self.create_locked(keys)
    }

    /// Makes the plaintext keys of the reference layout in `from` those of this KMS; the files in `from` stay.
    ///
    /// Errors: none or unusable keys there, or keys here already.
    pub(crate) fn import(&self, from: &Path) -> Result<KeyStore, KeyStoreError> {
        let source = KeyStore::load(from, &Vault::plain())?.ok_or_else(|| KeyStoreError::Foreign { dir: from.to_owned() })?;
        let epochs = source.epochs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let temp = CertKey::from_pem(&source.temp.key_pem())?;
        let origin = Origin::Brought(source.bootstrap_info);
        self.create(&NewKeys { root: source.keys, temp, epochs: Some(epochs), origin })
    }

    /// Two processes that start at once must not make two roots.
    fn lock(&self) -> Result<File, KeyStoreError> {
        let parent = parent_of(self.dir);
        fs::create_dir_all(parent).map_err(io_error("making", parent))?;
        let lock = File::open(parent).map_err(io_error("opening", parent))?;
        lock.lock().map_err(io_error("locking", parent))?;
        Ok(lock)
    }

    fn load_locked(&self) -> Result<Option<KeyStore>, KeyStoreError> {
        remove_if_there(&staging_of(self.dir))?;
        let Some(mut store) = KeyStore::load(self.dir, self.vault)? else { return Ok(None) };
        renew_authorities(&mut store, self.dir, self.now)?;
        Ok(Some(store))
    }

    fn create_locked(&self, keys: &NewKeys) -> Result<KeyStore, KeyStoreError> {
        let staging = staging_of(self.dir);
        self.write_all(&staging, keys)?;
        sync(&staging)?;
        fs::rename(&staging, self.dir).map_err(io_error("renaming to", self.dir))?;
        sync(parent_of(self.dir))?;
        let store = KeyStore::load(self.dir, self.vault)?.ok_or_else(|| KeyStoreError::Foreign { dir: self.dir.to_owned() })?;
        tracing::info!(cert_dir = %self.dir.display(), ca_pubkey = hex::encode(store.root.spki_der()), "root keys stored");
        Ok(store)
    }

    fn write_all(&self, staging: &Path, keys: &NewKeys) -> Result<(), KeyStoreError> {
        DirBuilder::new().mode(0o700).create(staging).map_err(io_error("making", staging))?;
        let validity = Validity::starting(self.now, Validity::TEN_YEARS);
        let root = CertificateAuthority::self_signed(CaProfile::KmsRoot, cert_key(&keys.root.ca)?, validity)?;
        let temp = CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::from_pem(&keys.temp.to_pem())?, validity)?;
        let rpc_key = CertKey::generate()?;
        let chain = rpc_chain(&root, &rpc_key, self.domain, self.attest, self.now)?;
        let public: [(&str, &[u8]); 4] = [
            (ROOT_CRT, root.certificate_pem().as_bytes()),
            (TEMP_CRT, temp.certificate_pem().as_bytes()),
            (RPC_CRT, chain.pem.as_bytes()),
            (RPC_DOMAIN, self.domain.as_str().as_bytes()),
        ];
        let (ca_pem, temp_pem, rpc_pem) = (keys.root.ca.to_pkcs8_pem()?, temp.key_pem(), rpc_key.to_pem());
        let k256 = keys.root.k256.scalar();
        let epochs = keys.epochs.as_ref().map(Epochs::encode);
        let secret: [(&str, &[u8]); 4] =
            [(ROOT_KEY, ca_pem.as_bytes()), (TEMP_KEY, temp_pem.as_bytes()), (RPC_KEY, rpc_pem.as_bytes()), (K256_KEY, k256.expose())];
        let epochs = epochs.as_ref().map(|bytes| (EPOCHS, bytes.as_slice()));
        let info = match &keys.origin {
            Origin::Made => Some(self.bootstrap_info(&root, &keys.root.k256.public_key())?),
            Origin::Brought(info) => info.clone(),
        };
        if let Some(info) = info {
            write_new(&staging.join(BOOTSTRAP_INFO), &serde_json::to_vec_pretty(&info).unwrap_or_default())?;
        }
        for (name, bytes) in public {
            write_new(&staging.join(name), bytes)?;
        }
        for (name, bytes) in secret.into_iter().chain(epochs) {
            let path = staging.join(name);
            let sealed =
                self.vault.seal(name, bytes).map_err(|source| KeyStoreError::Sealed { path: path.clone(), source: source.into() })?;
            write_new(&path, &sealed)?;
        }
        Ok(())
    }

    fn bootstrap_info(&self, root: &CertificateAuthority, k256_pubkey: &[u8; 33]) -> Result<BootstrapInfo, KeyStoreError> {
        let report_data = bootstrap_report_data(root.spki_der(), k256_pubkey);
        let attestation = (self.attest)(&report_data).map_err(KeyStoreError::Evidence)?.unwrap_or_default();
        Ok(BootstrapInfo { ca_pubkey: root.spki_der().to_vec(), k256_pubkey: k256_pubkey.to_vec(), attestation })
    }
}

/// `keccak256("dstack-kms-genereted-keys-v1:" || hex(CA key) || ";" || hex(k256 key) || ";")`, zero-padded. The spelling is on the wire.
pub(crate) fn bootstrap_report_data(ca_spki: &[u8], k256_pubkey: &[u8; 33]) -> [u8; 64] {
    let text = format!("dstack-kms-genereted-keys-v1:{};{};", hex::encode(ca_spki), hex::encode(k256_pubkey));
    let mut report_data = [0; 64];
    report_data.split_at_mut(32).0.copy_from_slice(&Keccak256::digest(text));
    report_data
}

fn renew_authorities(store: &mut KeyStore, dir: &Path, now: u64) -> Result<(), KeyStoreError> {
    let validity = Validity::starting(now, Validity::TEN_YEARS);
    if is_to_be_renewed(&store.root, now) {
        store.root = CertificateAuthority::self_signed(CaProfile::KmsRoot, cert_key(&store.keys.ca)?, validity)?;
        write(dir, ROOT_CRT, store.root.certificate_pem().as_bytes())?;
        tracing::info!("root certificate renewed with the same key");
    }
    if is_to_be_renewed(&store.temp, now) {
        let key = CertKey::from_pem(&store.temp.key_pem())?;
        store.temp = CertificateAuthority::self_signed(CaProfile::ClientTemp, key, validity)?;
        write(dir, TEMP_CRT, store.temp.certificate_pem().as_bytes())?;
        tracing::info!("temporary client authority renewed with the same key");
    }
    Ok(())
}

fn is_to_be_renewed(authority: &CertificateAuthority, now: u64) -> bool {
    let Ok(parsed) = dstack_ra_tls::RaTlsCertificate::parse(authority.certificate_der()) else { return true };
    let not_after = u64::try_from(parsed.not_after()).unwrap_or(0);
    not_after < now.saturating_add(CA_RENEWAL_SECONDS) || parsed.check_dates(now).is_err()
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), KeyStoreError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("writing", path))
}

fn remove_if_there(staging: &Path) -> Result<(), KeyStoreError> {
    match fs::remove_dir_all(staging) {
        Ok(()) => {
            tracing::warn!(path = %staging.display(), "an interrupted bootstrap was removed");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KeyStoreError::Io { action: "removing", path: staging.to_owned(), source }),
    }
}

fn sync(dir: &Path) -> Result<(), KeyStoreError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(io_error("syncing", dir))
}

fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn staging_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    parent_of(dir).join(format!(".{name}.staging"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyStoreError {
    let path = path.to_owned();
    move |source| KeyStoreError::Io { action, path, source }
}

#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod tests;
