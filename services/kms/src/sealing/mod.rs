//! Keys at rest: every secret file of `cert_dir` is encrypted under a key that only this measured system gets from its platform.
//!
//! ```text
//! platform key ──HKDF, file name──▶ file key ──AES-256-GCM──▶ header | ciphertext            (SPEC.md §2)
//! ```
//! Without a platform key ([`Vault::plain`]) the files are those of the reference layout, as they are.

mod local_key_provider;
mod sealed_file;
mod tpm;

use dstack_api::UserFacing;
use dstack_attester::AttesterError;
use dstack_key_hierarchy::Secret;

use crate::{config::SealingProvider, tee::Tee};

pub use local_key_provider::ProviderError;
pub(crate) use local_key_provider::{Collateral, LocalKeyProvider};
#[cfg(test)]
pub(crate) use sealed_file::is_sealed;
pub(crate) use sealed_file::{OpenError, Vault};
pub use tpm::{ChipError, PcrBank, TpmKeyError};
pub(crate) use tpm::{Pcrs, Tpm};

/// What the platform's keys are asked for.
const LABEL: &str = "dstack-kms keys at rest v1";

/// Where a platform's key comes from.
pub(crate) trait PlatformKey {
    /// Which kind, as it stands in the header of a sealed file.
    fn kind(&self) -> Kind;

    /// The same 32 bytes at each start of the same measured system on the same machine.
    fn key(&self) -> impl Future<Output = Result<Secret<32>, SealingError>> + Send;
}

/// Kinds of platform keys. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The software TEE: worth nothing outside of a test system.
    SoftwareTee = 1,
    /// A sealing enclave on the same host.
    LocalKeyProvider = 2,
    /// A TPM.
    Tpm = 3,
}

/// Why the platform gives no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealingError {
    /// The TEE device.
    #[error("sealing key of the TEE")]
    Tee(#[source] AttesterError),
    /// No TEE to ask.
    #[error("sealing needs a TEE, and this machine has none")]
    NoTee,
    /// The local key provider.
    #[error("sealing key of the local key provider")]
    Provider(#[source] ProviderError),
    /// The TPM.
    #[error("sealing key of the TPM")]
    Tpm(#[source] TpmKeyError),
}

impl UserFacing for SealingError {
    fn code(&self) -> &'static str {
        match self {
            Self::Tee(_) | Self::NoTee => "kms/sealing-tee",
            Self::Provider(_) => "kms/sealing-provider",
            Self::Tpm(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Tee(_) | Self::NoTee => {
                "set sealing.provider to where this platform's sealing key comes from, or start in a TEE".to_owned()
            }
            Self::Provider(_) => "start the key provider on the host, and name its address and enclave under [sealing]".to_owned(),
            Self::Tpm(error) => error.fix(),
        }
    }
}

/// The software TEE's key.
struct SoftwareTee<'a>(&'a Tee);

impl PlatformKey for SoftwareTee<'_> {
    fn kind(&self) -> Kind {
        Kind::SoftwareTee
    }

    async fn key(&self) -> Result<Secret<32>, SealingError> {
        let key = self.0.sealing_key(LABEL).ok_or(SealingError::NoTee)?.map_err(SealingError::Tee)?;
        Ok(Secret::new(*key))
    }
}

/// The vault under the configured platform key.
///
/// Errors: the platform gives no key. Nothing is opened or written yet.
pub(crate) async fn open_vault(
    provider: SealingProvider,
    tee: &Tee,
    local: &LocalKeyProvider<'_>,
    tpm: &Tpm<'_>,
) -> Result<Vault, SealingError> {
    match provider {
        SealingProvider::None => Ok(Vault::plain()),
        SealingProvider::SoftwareTee => under(&SoftwareTee(tee)).await,
        SealingProvider::LocalKeyProvider => under(local).await,
        SealingProvider::Tpm => under(tpm).await,
    }
}

async fn under(platform: &impl PlatformKey) -> Result<Vault, SealingError> {
    let key = platform.key().await?;
    tracing::info!(kind = ?platform.kind(), "keys at rest are sealed");
    Ok(Vault::under(platform.kind(), &key))
}
