//! The first start: makes the keys, all or nothing.
//!
//! Everything is written to `.<name>.staging` beside `cert_dir` and synced; one rename makes it `cert_dir`. A crash before the
//! rename leaves no keys (the next start makes others), a crash after it leaves all of them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use dstack_key_hierarchy::RootKeys;
use dstack_ra_tls::{CaProfile, CertKey, CertificateAuthority, Validity};
use rand_core::OsRng;
use sha3::{Digest as _, Keccak256};

use crate::{
    domain::Domain,
    key_store::{
        BOOTSTRAP_INFO, BootstrapInfo, K256_KEY, KeyStore, KeyStoreError, ROOT_CRT, ROOT_KEY, RPC_CRT, RPC_DOMAIN, RPC_KEY, TEMP_CRT,
        TEMP_KEY, cert_key, write,
    },
    server::{Attest, rpc_chain},
};

/// Authorities with less than this left are signed anew with the same key.
const CA_RENEWAL_SECONDS: u64 = 365 * 24 * 3600;

/// Loads the keys, or makes them where there are none. `now`: Unix seconds.
pub(crate) fn load_or_create(dir: &Path, domain: &Domain, attest: &Attest<'_>, now: u64) -> Result<KeyStore, KeyStoreError> {
    let parent = parent_of(dir);
    fs::create_dir_all(parent).map_err(io_error("making", parent))?;
    let lock = File::open(parent).map_err(io_error("opening", parent))?;
    // Two processes that start at once must not make two roots.
    lock.lock().map_err(io_error("locking", parent))?;
    let staging = staging_of(dir);
    remove_if_there(&staging)?;
    if let Some(mut store) = KeyStore::load(dir)? {
        renew_authorities(&mut store, dir, now)?;
        return Ok(store);
    }
    create(&staging, domain, attest, now)?;
    sync(&staging)?;
    fs::rename(&staging, dir).map_err(io_error("renaming to", dir))?;
    sync(parent)?;
    let store = KeyStore::load(dir)?.ok_or_else(|| KeyStoreError::Foreign { dir: dir.to_owned() })?;
    tracing::info!(cert_dir = %dir.display(), ca_pubkey = hex::encode(store.root.spki_der()), "root keys made");
    Ok(store)
}

fn create(staging: &Path, domain: &Domain, attest: &Attest<'_>, now: u64) -> Result<(), KeyStoreError> {
    DirBuilder::new().mode(0o700).create(staging).map_err(io_error("making", staging))?;
    let keys = RootKeys::generate(&mut OsRng);
    let validity = Validity::starting(now, Validity::TEN_YEARS);
    let root = CertificateAuthority::self_signed(CaProfile::KmsRoot, cert_key(&keys.ca)?, validity)?;
    let temp = CertificateAuthority::self_signed(CaProfile::ClientTemp, CertKey::generate()?, validity)?;
    let rpc_key = CertKey::generate()?;
    let k256_pubkey = keys.k256.public_key();
    let attestation = attest(&bootstrap_report_data(root.spki_der(), &k256_pubkey)).unwrap_or_default();
    let info = BootstrapInfo { ca_pubkey: root.spki_der().to_vec(), k256_pubkey: k256_pubkey.to_vec(), attestation };
    let info = serde_json::to_vec_pretty(&info).unwrap_or_default();
    let chain = rpc_chain(&root, &rpc_key, domain, attest, now)?;
    let (ca_pem, temp_pem, rpc_pem, k256) = (keys.ca.to_pkcs8_pem()?, temp.key_pem(), rpc_key.to_pem(), keys.k256.scalar());
    let files: [(&str, &[u8]); 9] = [
        (ROOT_CRT, root.certificate_pem().as_bytes()),
        (ROOT_KEY, ca_pem.as_bytes()),
        (TEMP_CRT, temp.certificate_pem().as_bytes()),
        (TEMP_KEY, temp_pem.as_bytes()),
        (RPC_CRT, chain.pem.as_bytes()),
        (RPC_KEY, rpc_pem.as_bytes()),
        (RPC_DOMAIN, domain.as_str().as_bytes()),
        (K256_KEY, k256.expose()),
        (BOOTSTRAP_INFO, &info),
    ];
    for (name, bytes) in files {
        let path = staging.join(name);
        write_new(&path, bytes).map_err(io_error("writing", &path))?;
    }
    Ok(())
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
    if expires_soon(&store.root, now) {
        store.root = CertificateAuthority::self_signed(CaProfile::KmsRoot, cert_key(&store.keys.ca)?, validity)?;
        write(dir, ROOT_CRT, store.root.certificate_pem().as_bytes())?;
        tracing::info!("root certificate renewed with the same key");
    }
    if expires_soon(&store.temp, now) {
        let key = CertKey::from_pem(&store.temp.key_pem())?;
        store.temp = CertificateAuthority::self_signed(CaProfile::ClientTemp, key, validity)?;
        write(dir, TEMP_CRT, store.temp.certificate_pem().as_bytes())?;
        tracing::info!("temporary client authority renewed with the same key");
    }
    Ok(())
}

fn expires_soon(authority: &CertificateAuthority, now: u64) -> bool {
    let parsed = dstack_ra_tls::RaTlsCertificate::parse(authority.certificate_der());
    let not_after = parsed.ok().and_then(|certificate| u64::try_from(certificate.not_after()).ok()).unwrap_or(0);
    not_after < now.saturating_add(CA_RENEWAL_SECONDS)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
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
mod tests;
