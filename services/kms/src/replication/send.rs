//! The side that has the keys.

use std::sync::PoisonError;

use dstack_api::kms::{GetKmsKeyRequest, KmsKeyResponse, KmsKeys};
use dstack_authorization::AuthorizedKms;
use dstack_key_hierarchy::InvalidKey;
use dstack_ra_tls::{CertKey, KeyError};

use super::transcript::{NONCE_BYTES, Transcript};
use crate::key_backend::{KeyBackend, KeyBackendError, WholeRoot};

/// Why the keys are not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    #[error("the nonce has {got} bytes, {} to {} are answered", NONCE_BYTES.start(), NONCE_BYTES.end())]
    Nonce { got: usize },
    #[error(transparent)]
    Backend(#[from] KeyBackendError),
    #[error("encoding a key")]
    Key(#[from] InvalidKey),
    #[error("signing the transcript")]
    Sign(#[from] KeyError),
}

/// What is sent, and who sends it.
pub(crate) struct Sender<'a, B> {
    pub(crate) backend: &'a B,
    pub(crate) temp_key_pem: &'a str,
    /// Own leaf certificate, DER, and its key.
    pub(crate) leaf: &'a [u8],
    pub(crate) leaf_key: &'a CertKey,
}

impl<B: KeyBackend> Sender<'_, B> {
    /// The answer to a KMS that may have the root. `receiver`: its leaf certificate.
    ///
    /// Without a nonce (another implementation) the answer is not signed.
    pub(crate) fn send(&self, _allowed: &AuthorizedKms, request: &GetKmsKeyRequest, receiver: &[u8]) -> Result<KmsKeyResponse, SendError> {
        self.answer(request, receiver)
    }

    pub(crate) fn answer(&self, request: &GetKmsKeyRequest, receiver: &[u8]) -> Result<KmsKeyResponse, SendError> {
        let WholeRoot { root, epochs, .. } = self.backend.whole_root()?;
        let keys = KmsKeys { ca_key: root.ca.to_pkcs8_pem()?.to_string(), k256_key: root.k256.scalar().expose().to_vec() };
        let mut answer = KmsKeyResponse { temp_ca_key: self.temp_key_pem.to_owned(), keys: vec![keys], ..KmsKeyResponse::default() };
        if request.nonce.is_empty() {
            return Ok(answer);
        }
        if !NONCE_BYTES.contains(&request.nonce.len()) {
            return Err(SendError::Nonce { got: request.nonce.len() });
        }
        answer.epochs = epochs.read().unwrap_or_else(PoisonError::into_inner).encode().to_vec();
        let transcript = Transcript { nonce: &request.nonce, receiver, sender: self.leaf, answer: &answer };
        let signature = self.leaf_key.sign(&transcript.encode())?;
        answer.sender_certificate = self.leaf.to_vec();
        answer.signature = signature;
        Ok(answer)
    }
}
