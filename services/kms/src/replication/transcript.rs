//! What the sender signs. Source: SPEC.md §3.

use dstack_api::kms::KmsKeyResponse;
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use p256::pkcs8::DecodePublicKey as _;
use prost::Message as _;
use zeroize::Zeroizing;

const LABEL: &[u8] = b"dstack-kms-replication-v1";
/// Nonces that are answered.
pub(super) const NONCE_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// One transfer.
pub(super) struct Transcript<'a> {
    pub(super) nonce: &'a [u8],
    /// Leaf certificates, DER.
    pub(super) receiver: &'a [u8],
    pub(super) sender: &'a [u8],
    /// The answer; its own certificate and signature do not count.
    pub(super) answer: &'a KmsKeyResponse,
}

impl Transcript<'_> {
    /// The signed bytes. Secret: the keys are inside.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut keys = self.answer.clone();
        keys.sender_certificate.clear();
        keys.signature.clear();
        let keys = Zeroizing::new(keys.encode_to_vec());
        let mut bytes = Zeroizing::new(Vec::with_capacity(keys.len() + self.receiver.len() + self.sender.len() + 128));
        for part in [LABEL, self.nonce, self.receiver, self.sender, &keys] {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// Whether the answer's signature is by the key with `spki` (DER).
    pub(super) fn is_signed_by(&self, spki: &[u8]) -> bool {
        let Ok(key) = VerifyingKey::from_public_key_der(spki) else { return false };
        let Ok(signature) = Signature::from_der(&self.answer.signature) else { return false };
        key.verify(&self.encode(), &signature).is_ok()
    }
}
