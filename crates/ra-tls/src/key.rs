//! P-256 keys of certificates.

use p256::pkcs8::DecodePrivateKey as _;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use zeroize::Zeroizing;

/// A key that cannot be used for certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not PKCS#8 with a P-256 key.
    #[error("private key is not a P-256 key in PKCS#8 form")]
    NotP256,
    /// The machine's random source.
    #[error("generating a P-256 key")]
    Generate(#[source] rcgen::Error),
}

/// A P-256 signing key. No `Debug` content, no `Clone`.
pub struct CertKey {
    pair: KeyPair,
}

impl std::fmt::Debug for CertKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertKey(…)")
    }
}

impl CertKey {
    /// A random key.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|pair| Self { pair }).map_err(KeyError::Generate)
    }

    /// Reads PKCS#8 DER.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        p256::SecretKey::from_pkcs8_der(der).map_err(|_| KeyError::NotP256)?;
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der);
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map(|pair| Self { pair }).map_err(|_| KeyError::NotP256)
    }

    /// Reads PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        use rustls_pki_types::pem::PemObject as _;
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NotP256)?;
        Self::from_pkcs8_der(der.secret_pkcs8_der())
    }

    /// PKCS#8 PEM. Secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// PKCS#8 DER. Secret.
    #[must_use]
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.serialize_der())
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// ECDSA P-256/SHA-256 over `message`, ASN.1 DER.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        rcgen::SigningKey::sign(&self.pair, message).map_err(KeyError::Generate)
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn into_pair(self) -> KeyPair {
        self.pair
    }
}
