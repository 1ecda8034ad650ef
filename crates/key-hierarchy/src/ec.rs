//! Private keys on the two curves.

use std::{fmt, sync::OnceLock};

use aws_lc_rs::agreement::{self, ECDH_P256};
use k256::ecdsa::SigningKey;
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::{Secret, signature::RecoverableSignature};

/// Bytes that are no private key of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a private key of {curve}")]
pub struct InvalidKey {
    /// Name of the curve.
    pub curve: &'static str,
}

const P256: InvalidKey = InvalidKey { curve: "P-256" };
const K256: InvalidKey = InvalidKey { curve: "secp256k1" };

/// PKCS#8 of a P-256 key up to the scalar: PrivateKeyInfo, id-ecPublicKey, prime256v1, ECPrivateKey version 1.
const PKCS8_HEAD: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
];
/// Between scalar and uncompressed point: `[1] BIT STRING`.
const PKCS8_MIDDLE: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
/// SubjectPublicKeyInfo of a P-256 key up to the point.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

/// A P-256 private key: certificate authorities and the root of the derivation tree.
pub struct P256Key(p256::SecretKey);

impl P256Key {
    /// A random key.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(p256::SecretKey::random(rng))
    }

    /// From the big-endian scalar.
    ///
    /// Errors: zero, or not below the group order.
    pub fn from_scalar(scalar: &Secret<32>) -> Result<Self, InvalidKey> {
        p256::SecretKey::from_slice(scalar.expose()).map(Self).map_err(|_| P256)
    }

    /// From a PKCS#8 PEM, as stored by a KMS.
    ///
    /// Errors: anything else.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, InvalidKey> {
        use p256::pkcs8::DecodePrivateKey as _;
        p256::SecretKey::from_pkcs8_pem(pem).map(Self).map_err(|_| P256)
    }

    /// The big-endian scalar: input key material of the derivations.
    #[must_use]
    pub fn scalar(&self) -> Secret<32> {
        Secret::new(self.0.to_bytes().into())
    }

    /// The one PKCS#8 DER form that enters derivations, with the public key and without parameters inside; 138 bytes.
    ///
    /// Errors: none in practice; the library's are passed on.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, InvalidKey> {
        let mut der = Zeroizing::new(Vec::with_capacity(138));
        der.extend_from_slice(&PKCS8_HEAD);
        der.extend_from_slice(self.scalar().expose());
        der.extend_from_slice(&PKCS8_MIDDLE);
        der.extend_from_slice(&self.public_point()?);
        Ok(der)
    }

    /// [`Self::to_pkcs8_der`] as PEM.
    ///
    /// Errors: none in practice; the encoder's are passed on.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, InvalidKey> {
        use p256::pkcs8::EncodePrivateKey as _;
        self.0.to_pkcs8_pem(p256::pkcs8::LineEnding::LF).map_err(|_| P256)
    }

    /// DER of the SubjectPublicKeyInfo; 91 bytes. Its hex is the KMS's key provider id.
    ///
    /// Errors: none in practice; the library's are passed on.
    pub fn spki_der(&self) -> Result<Vec<u8>, InvalidKey> {
        Ok([SPKI_HEAD.as_slice(), &self.public_point()?].concat())
    }

    /// Uncompressed SEC1 point. Every derivation needs one, so it comes from the TLS library's arithmetic, a tenth of the time of `p256`'s.
    fn public_point(&self) -> Result<[u8; 65], InvalidKey> {
        let key = agreement::PrivateKey::from_private_key(&ECDH_P256, self.scalar().expose()).map_err(|_| P256)?;
        let point = key.compute_public_key().map_err(|_| P256)?;
        point.as_ref().try_into().map_err(|_| P256)
    }
}

impl fmt::Debug for P256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P256Key(..)")
    }
}

/// A secp256k1 private key: the signing root and the keys of applications.
pub struct K256Key {
    secret: k256::SecretKey,
    /// With the public key, which costs more than the rest of a derivation and is not always asked for.
    signing: OnceLock<SigningKey>,
}

impl K256Key {
    /// A random key.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self::of(k256::SecretKey::random(rng))
    }

    fn of(secret: k256::SecretKey) -> Self {
        Self { secret, signing: OnceLock::new() }
    }

    /// From the big-endian scalar.
    ///
    /// Errors: zero, or not below the group order.
    pub fn from_scalar(scalar: &Secret<32>) -> Result<Self, InvalidKey> {
        k256::SecretKey::from_slice(scalar.expose()).map(Self::of).map_err(|_| K256)
    }

    /// The big-endian scalar.
    #[must_use]
    pub fn scalar(&self) -> Secret<32> {
        Secret::new(self.secret.to_bytes().into())
    }

    /// Compressed SEC1 public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 33] {
        let mut key = [0; 33];
        key.copy_from_slice(self.signing_key().verifying_key().to_encoded_point(true).as_bytes());
        key
    }

    /// Signs a digest: `r || s || recovery id`, RFC 6979, low S.
    ///
    /// Errors: none in practice; the signer's are passed on.
    pub fn sign_digest(&self, digest: &[u8; 32]) -> Result<RecoverableSignature, InvalidKey> {
        let (signature, recovery) = self.signing_key().sign_prehash_recoverable(digest).map_err(|_| K256)?;
        let mut bytes = [0; 65];
        let (rs, id) = bytes.split_at_mut(64);
        rs.copy_from_slice(&signature.to_bytes());
        id.fill(recovery.to_byte());
        Ok(bytes)
    }

    /// The signing key of the `k256` crate, for other signature forms.
    pub(crate) fn signing_key(&self) -> &SigningKey {
        self.signing.get_or_init(|| SigningKey::from(&self.secret))
    }
}

impl fmt::Debug for K256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("K256Key(..)")
    }
}
