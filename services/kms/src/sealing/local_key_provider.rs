//! The protocol of the local key provider: a sealing enclave on the host gives a TD a key that is bound to its registers.
//!
//! ```text
//! request   u32 length | {"quote":[…]}                              report data of the TD = X25519 key (32) || 0
//! answer    u32 length | {"encrypted_key":[…],"provider_quote":[…]}  a libsodium sealed box to that key
//! ```
//! The answer counts only if its SGX quote is genuine, of the configured enclave, and over SHA-256 of the box: else the host could give a
//! key that it knows.

use std::time::Duration;

use crypto_box::SecretKey;
use dstack_attestation::{QuoteCollateral, SgxVerifier, Verifier, VerifyError};
use dstack_attester::AttesterError;
use dstack_key_hierarchy::Secret;
use rand_core::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use zeroize::Zeroizing;

use super::{Kind, PlatformKey, SealingError};
use crate::tee::Tee;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_FRAME_BYTES: u32 = 8 << 20;

/// Why the provider's key is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// No TEE to prove who asks.
    #[error("there is no TEE whose registers the key could be bound to")]
    NoTee,
    /// Evidence.
    #[error("evidence for the key provider")]
    Evidence(#[source] AttesterError),
    /// The network.
    #[error("talking to {address}")]
    Io {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not the protocol.
    #[error("the answer is not one of a key provider: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The enclave is not configured.
    #[error("the key provider's enclave is not named")]
    NoEnclave,
    /// Its quote.
    #[error("the key provider's quote")]
    Quote(#[source] VerifyError),
    /// Another enclave.
    #[error("the key provider's enclave is {got}, expected {expected}")]
    OtherEnclave {
        /// MRENCLAVE.
        got: String,
        /// MRENCLAVE.
        expected: String,
    },
    /// A genuine quote over something else.
    #[error("the key provider's quote is not over its answer")]
    NotBound,
}

/// Verified facts of an SGX quote.
pub(crate) struct EnclaveReport {
    pub(crate) mr_enclave: Vec<u8>,
    pub(crate) report_data: Vec<u8>,
}

/// Judges the provider's quote.
pub(crate) trait EnclaveJudge: Sync {
    /// Facts of a genuine quote.
    fn judge(&self, quote: &[u8]) -> Result<EnclaveReport, ProviderError>;
}

/// Judges with the vendor's collateral that the operator gave.
pub(crate) struct Collateral {
    pub(crate) verifier: Verifier,
    pub(crate) collateral: Option<QuoteCollateral>,
    pub(crate) now: u64,
}

impl EnclaveJudge for Collateral {
    fn judge(&self, quote: &[u8]) -> Result<EnclaveReport, ProviderError> {
        let collateral = self.collateral.clone().ok_or(ProviderError::NoEnclave)?;
        let (platform, _) =
            self.verifier.verify_platform(&SgxVerifier, quote, &collateral.into(), self.now, None).map_err(ProviderError::Quote)?;
        let mr_enclave = platform.register("mr_enclave").unwrap_or_default().to_vec();
        Ok(EnclaveReport { mr_enclave, report_data: platform.report_data().to_vec() })
    }
}

/// The provider at an address.
pub(crate) struct LocalKeyProvider<'a> {
    pub(crate) address: &'a str,
    /// MRENCLAVE it must have.
    pub(crate) mr_enclave: Option<[u8; 32]>,
    pub(crate) judge: &'a dyn EnclaveJudge,
    pub(crate) tee: &'a Tee,
}

#[derive(Serialize)]
struct Request<'a> {
    quote: &'a [u8],
}

#[derive(Deserialize)]
struct Answer {
    encrypted_key: Vec<u8>,
    provider_quote: Vec<u8>,
}

impl PlatformKey for LocalKeyProvider<'_> {
    fn kind(&self) -> Kind {
        Kind::LocalKeyProvider
    }

    async fn key(&self) -> Result<Secret<32>, SealingError> {
        self.ask().await.map_err(SealingError::Provider)
    }
}

impl LocalKeyProvider<'_> {
    async fn ask(&self) -> Result<Secret<32>, ProviderError> {
        let key = SecretKey::generate(&mut OsRng);
        let mut report_data = [0; 64];
        report_data.split_at_mut(32).0.copy_from_slice(key.public_key().as_bytes());
        let quote = self.tee.quote(&report_data).ok_or(ProviderError::NoTee)?.map_err(ProviderError::Evidence)?;
        let answer = self.exchange(&quote).await?;
        self.open(&key, &answer)
    }

    async fn exchange(&self, quote: &[u8]) -> Result<Answer, ProviderError> {
        let io = |source| ProviderError::Io { address: self.address.to_owned(), source };
        let request =
            serde_json::to_vec(&Request { quote }).map_err(|_| ProviderError::Answer { reason: "the request has no JSON form" })?;
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_u32(u32::try_from(request.len()).unwrap_or(u32::MAX)).await?;
            stream.write_all(&request).await?;
            let length = stream.read_u32().await?;
            if length > MAX_FRAME_BYTES {
                return Ok(None);
            }
            let mut frame = Vec::new();
            stream.take(length.into()).read_to_end(&mut frame).await?;
            Ok(Some(frame))
        };
        let frame = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| io(std::io::ErrorKind::TimedOut.into()))?.map_err(io)?;
        let frame = frame.ok_or(ProviderError::Answer { reason: "it is longer than 8 MiB" })?;
        serde_json::from_slice(&frame).map_err(|_| ProviderError::Answer { reason: "it is not JSON with encrypted_key and provider_quote" })
    }

    fn open(&self, key: &SecretKey, answer: &Answer) -> Result<Secret<32>, ProviderError> {
        let expected = self.mr_enclave.ok_or(ProviderError::NoEnclave)?;
        let report = self.judge.judge(&answer.provider_quote)?;
        if report.mr_enclave != expected {
            return Err(ProviderError::OtherEnclave { got: hex::encode(&report.mr_enclave), expected: hex::encode(expected) });
        }
        if report.report_data.get(..32) != Some(Sha256::digest(&answer.encrypted_key).as_slice()) {
            return Err(ProviderError::NotBound);
        }
        let opened = key.unseal(&answer.encrypted_key).map_err(|_| ProviderError::Answer { reason: "the box does not open" })?;
        let opened = Zeroizing::new(opened);
        Secret::from_slice(&opened).map_err(|_| ProviderError::Answer { reason: "the key has not 32 bytes" })
    }
}

#[cfg(test)]
mod tests;
