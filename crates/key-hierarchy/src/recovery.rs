//! The root in shares: `threshold` of the custodians together can bring it back, fewer learn nothing. Source: SPEC.md §9.
//!
//! ```text
//! recovery key (random) ──Shamir over GF(256)──▶ one share per custodian
//!        └──AES-256-GCM──▶ bundle = root keys and epochs, the same in every custodian's file
//! ```
//! Every file carries the whole set (bundle, commitments to all shares, public keys of the root) signed by the root, so any `threshold` files
//! suffice and a wrong one is told apart.

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload, generic_array::GenericArray},
};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vsss_rs::Gf256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    K256Key, P256Key, RootKeys, Secret,
    ec::InvalidKey,
    epochs::Epochs,
    signature::{keccak, recover},
};

const VERSION: u32 = 1;
const SET_LABEL: &[u8] = b"dstack-kms-recovery-set-v1:";
const SHARE_LABEL: &[u8] = b"dstack-kms-recovery-share-v1";
const BUNDLE_LABEL: &[u8] = b"dstack-kms-recovery-bundle-v1";
const SESSION_LABEL: &[u8] = b"dstack-kms-recovery-session-v1:";
const NONCE_BYTES: usize = 12;
const ROOT_BYTES: usize = 64;
/// Most custodians.
pub const MAX_CUSTODIANS: usize = 32;
/// Position, then one byte per byte of the recovery key.
pub const SHARE_BYTES: usize = 33;

/// One custodian's share. Secret.
pub type RecoveryShare = Secret<SHARE_BYTES>;

/// Why a root cannot be shared or brought back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The numbers make no sense.
    #[error("{threshold} of {custodians} custodians: 2 to {MAX_CUSTODIANS} custodians and a threshold of 2 to all of them are possible")]
    Numbers {
        /// How many must come together.
        threshold: usize,
        /// How many there are.
        custodians: usize,
    },
    /// A custodian twice: fewer people than meant would suffice.
    #[error("two custodians have the recipient {recipient}")]
    SameRecipient {
        /// It.
        recipient: String,
    },
    /// Not a share file.
    #[error("not a share file of version {VERSION}: {reason}")]
    Malformed {
        /// Why.
        reason: String,
    },
    /// The signature over the set is not by the root that it names.
    #[error("the share file was changed since the KMS signed it")]
    Signature,
    /// The share is not the one that was made for the set.
    #[error("the share does not belong to this set")]
    Share,
    /// Too few.
    #[error("{got} shares, {threshold} are needed")]
    TooFew {
        /// How many.
        got: usize,
        /// How many are needed.
        threshold: usize,
    },
    /// Shares that hold by themselves give a root that the set does not name.
    #[error("the shares give another root than the set names")]
    OtherRoot,
    /// A key.
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

/// One who keeps a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custodian {
    /// Whom the share is encrypted to (`age1…`).
    pub recipient: String,
    /// Hash of the share.
    #[serde(with = "hex::serde")]
    pub commitment: [u8; 32],
}

/// What all custodians of one set have in common. Public, but for whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSet {
    /// Format.
    pub version: u32,
    /// Random.
    #[serde(with = "hex::serde")]
    pub set_id: [u8; 16],
    /// Unix seconds.
    pub created_at: u64,
    /// How many custodians must come together.
    pub threshold: usize,
    /// In the order of their shares.
    pub custodians: Vec<Custodian>,
    /// SubjectPublicKeyInfo of the root CA key, DER.
    #[serde(with = "hex::serde")]
    pub ca_pubkey: Vec<u8>,
    /// Compressed k256 root key.
    #[serde(with = "hex::serde")]
    pub k256_pubkey: Vec<u8>,
    /// Nonce, then the root and its epochs under the recovery key.
    #[serde(with = "hex::serde")]
    pub bundle: Vec<u8>,
}

/// A set with the root's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSet {
    /// The set.
    pub set: ShareSet,
    /// `r || s || recovery id` by the k256 root.
    #[serde(with = "hex::serde")]
    pub signature: Vec<u8>,
}

/// What one custodian keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareFile {
    /// The same for all custodians.
    pub signed: SignedSet,
    /// Which of [`ShareSet::custodians`] this is, from 0.
    pub custodian: usize,
    /// The share, encrypted to the custodian's recipient (age, binary).
    #[serde(with = "hex::serde")]
    pub share: Vec<u8>,
}

/// A root that was brought back.
#[derive(Debug)]
pub struct RecoveredRoot {
    /// The root keys.
    pub root: RootKeys,
    /// Its epochs as of the time of the set.
    pub epochs: Epochs,
}

impl SignedSet {
    /// Splits a root among `recipients`. The shares come in their order, unencrypted.
    ///
    /// `created_at`: Unix seconds.
    ///
    /// Errors: numbers that make no sense, one recipient twice.
    pub fn create(
        (root, epochs): (&RootKeys, &Epochs),
        threshold: usize,
        recipients: &[String],
        created_at: u64,
        rng: &mut impl CryptoRngCore,
    ) -> Result<(Self, Vec<RecoveryShare>), RecoveryError> {
        check_numbers(threshold, recipients.len())?;
        if let Some(recipient) =
            recipients.iter().enumerate().find_map(|(at, one)| recipients.iter().skip(at + 1).find(|other| *other == one))
        {
            return Err(RecoveryError::SameRecipient { recipient: recipient.clone() });
        }
        let mut set_id = [0; 16];
        rng.fill_bytes(&mut set_id);
        let key = Secret::<32>::generate(rng);
        let shares = split(&key, threshold, recipients.len(), rng)?;
        let custodians = recipients.iter().zip(&shares);
        let custodians =
            custodians.map(|(recipient, share)| Custodian { recipient: recipient.clone(), commitment: commitment(&set_id, share) });
        let set = ShareSet {
            version: VERSION,
            set_id,
            created_at,
            threshold,
            custodians: custodians.collect(),
            ca_pubkey: root.ca.spki_der()?,
            k256_pubkey: root.k256.public_key().to_vec(),
            bundle: seal_bundle(&key, &set_id, root, epochs, rng)?,
        };
        let signature = root.k256.sign_digest(&set.digest())?.to_vec();
        Ok((Self { set, signature }, shares))
    }

    /// Checks form, numbers and signature. Whether the root is the one that is meant is the caller's check.
    ///
    /// Errors: what does not hold.
    pub fn verify(&self) -> Result<(), RecoveryError> {
        if self.set.version != VERSION {
            return Err(RecoveryError::Malformed { reason: format!("version {}", self.set.version) });
        }
        check_numbers(self.set.threshold, self.set.custodians.len())?;
        let signer = recover(&self.set.digest(), &self.signature).ok_or(RecoveryError::Signature)?;
        if signer.as_slice() == self.set.k256_pubkey { Ok(()) } else { Err(RecoveryError::Signature) }
    }

    /// Checks that `share` is the one that was made for `custodian` (from 0).
    ///
    /// Errors: it is another.
    pub fn check_share(&self, custodian: usize, share: &RecoveryShare) -> Result<(), RecoveryError> {
        let expected = self.set.custodians.get(custodian).ok_or(RecoveryError::Share)?;
        if expected.commitment == commitment(&self.set.set_id, share) { Ok(()) } else { Err(RecoveryError::Share) }
    }

    /// Brings the root back, and proves that it is the one the set names.
    ///
    /// `shares`: checked by the caller with [`Self::check_share`], of different custodians.
    ///
    /// Errors: too few, or something else came out.
    pub fn restore(&self, shares: &[&RecoveryShare]) -> Result<RecoveredRoot, RecoveryError> {
        self.verify()?;
        if shares.len() < self.set.threshold {
            return Err(RecoveryError::TooFew { got: shares.len(), threshold: self.set.threshold });
        }
        let key = combine(shares)?;
        let recovered = open_bundle(&key, &self.set)?;
        let is_named =
            recovered.root.ca.spki_der()? == self.set.ca_pubkey && recovered.root.k256.public_key().as_slice() == self.set.k256_pubkey;
        if is_named { Ok(recovered) } else { Err(RecoveryError::OtherRoot) }
    }
}

impl ShareSet {
    fn digest(&self) -> [u8; 32] {
        // A set is text, numbers and bytes; writing it to memory cannot fail.
        keccak(&[SET_LABEL, &serde_json::to_vec(self).unwrap_or_default()])
    }
}

impl ShareFile {
    /// Reads a file and checks what can be checked without the share.
    ///
    /// Errors: not a share file, or changed.
    pub fn parse(text: &str) -> Result<Self, RecoveryError> {
        let file: Self = serde_json::from_str(text).map_err(|error| RecoveryError::Malformed { reason: error.to_string() })?;
        file.signed.verify()?;
        if file.custodian >= file.signed.set.custodians.len() {
            return Err(RecoveryError::Malformed { reason: format!("there is no custodian {}", file.custodian) });
        }
        Ok(file)
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// What a KMS signs with its k256 root (Keccak-256), or has attested, about the recipient of a session that takes shares.
#[must_use]
pub fn recovery_session_digest(session_id: &str, recipient: &str) -> [u8; 32] {
    keccak(&[SESSION_LABEL, session_id.as_bytes(), b":", recipient.as_bytes()])
}

fn check_numbers(threshold: usize, custodians: usize) -> Result<(), RecoveryError> {
    let fits = (2..=MAX_CUSTODIANS).contains(&custodians) && (2..=custodians).contains(&threshold);
    if fits { Ok(()) } else { Err(RecoveryError::Numbers { threshold, custodians }) }
}

fn commitment(set_id: &[u8; 16], share: &RecoveryShare) -> [u8; 32] {
    Sha256::new().chain_update(SHARE_LABEL).chain_update(set_id).chain_update(share.expose()).finalize().into()
}

fn split(key: &Secret<32>, threshold: usize, custodians: usize, rng: &mut impl CryptoRngCore) -> Result<Vec<RecoveryShare>, RecoveryError> {
    let numbers = |_| RecoveryError::Numbers { threshold, custodians };
    let mut parts = Gf256::split_bytes(threshold, custodians, key.expose(), Bridge(rng)).map_err(numbers)?;
    let shares = parts.iter().map(|part| Secret::from_slice(part)).collect::<Result<Vec<_>, _>>().map_err(|_| RecoveryError::Share);
    parts.iter_mut().for_each(|part| part.zeroize());
    shares
}

fn combine(shares: &[&RecoveryShare]) -> Result<Secret<32>, RecoveryError> {
    let mut parts: Vec<Vec<u8>> = shares.iter().map(|share| share.expose().to_vec()).collect();
    let combined = Gf256::combine_bytes(&parts);
    parts.iter_mut().for_each(|part| part.zeroize());
    let combined = Zeroizing::new(combined.map_err(|_| RecoveryError::Share)?);
    Secret::from_slice(&combined).map_err(|_| RecoveryError::Share)
}

fn associated(set_id: &[u8; 16]) -> Vec<u8> {
    [BUNDLE_LABEL, set_id].concat()
}

fn seal_bundle(
    key: &Secret<32>,
    set_id: &[u8; 16],
    root: &RootKeys,
    epochs: &Epochs,
    rng: &mut impl CryptoRngCore,
) -> Result<Vec<u8>, RecoveryError> {
    let epochs = epochs.encode();
    let mut content = Zeroizing::new(Vec::with_capacity(ROOT_BYTES + epochs.len()));
    content.extend_from_slice(root.ca.scalar().expose());
    content.extend_from_slice(root.k256.scalar().expose());
    content.extend_from_slice(&epochs);
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let payload = Payload { msg: &content, aad: &associated(set_id) };
    let ciphertext = Aes256Gcm::new(GenericArray::from_slice(key.expose())).encrypt(GenericArray::from_slice(&nonce), payload);
    Ok([nonce.as_slice(), &ciphertext.map_err(|_| RecoveryError::OtherRoot)?].concat())
}

fn open_bundle(key: &Secret<32>, set: &ShareSet) -> Result<RecoveredRoot, RecoveryError> {
    let (nonce, ciphertext) = set.bundle.split_first_chunk::<NONCE_BYTES>().ok_or(RecoveryError::OtherRoot)?;
    let payload = Payload { msg: ciphertext, aad: &associated(&set.set_id) };
    let content = Aes256Gcm::new(GenericArray::from_slice(key.expose())).decrypt(GenericArray::from_slice(nonce), payload);
    let content = Zeroizing::new(content.map_err(|_| RecoveryError::OtherRoot)?);
    let (ca, rest) = content.split_first_chunk::<32>().ok_or(RecoveryError::OtherRoot)?;
    let (k256, epochs) = rest.split_first_chunk::<32>().ok_or(RecoveryError::OtherRoot)?;
    let secret = |bytes: &[u8; 32]| Secret::from_slice(bytes).map_err(|_| RecoveryError::OtherRoot);
    let root = RootKeys { ca: P256Key::from_scalar(&secret(ca)?)?, k256: K256Key::from_scalar(&secret(k256)?)? };
    Ok(RecoveredRoot { root, epochs: Epochs::decode(epochs).map_err(|_| RecoveryError::OtherRoot)? })
}

/// The caller's generator for a library that speaks a later version of the trait.
struct Bridge<'a, R>(&'a mut R);

impl<R: CryptoRngCore> rand_core_10::TryRng for Bridge<'_, R> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

impl<R: CryptoRngCore> rand_core_10::TryCryptoRng for Bridge<'_, R> {}

#[cfg(test)]
mod tests;
