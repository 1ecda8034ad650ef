//! Why there is no collateral.

use std::sync::Arc;

use dstack_api::UserFacing;
use dstack_attestation::QuoteError;
use dstack_rpc::{ClientError, EndpointError};

use super::PlatformError;

/// Why there is no collateral.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Not a quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The quote does not show a genuine platform; nothing is asked for it.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The service's address.
    #[error("address of the collateral service: {0}")]
    Address(Arc<EndpointError>),
    /// No answer.
    #[error("collateral service at {path}: {error}")]
    Unreachable {
        /// Path asked for.
        path: String,
        /// What happened.
        error: Arc<ClientError>,
    },
    /// An answer that says no.
    #[error("collateral service at {path} answers HTTP {status}")]
    Refused {
        /// Path asked for.
        path: String,
        /// Its status.
        status: u16,
    },
    /// An answer that cannot be read.
    #[error("collateral service at {path} answers with a malformed {part}")]
    Malformed {
        /// Path asked for.
        path: String,
        /// Which part.
        part: &'static str,
    },
    /// Every place of the cache is taken by a fetch that runs.
    #[error("collateral of {platforms} platform models is being fetched, no more at a time")]
    Busy {
        /// How many.
        platforms: usize,
    },
}

impl UserFacing for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Quote(_) => "collateral/quote",
            Self::Platform(_) => "collateral/platform",
            Self::Address(_) => "collateral/address",
            Self::Unreachable { .. } => "collateral/unreachable",
            Self::Refused { .. } => "collateral/refused",
            Self::Malformed { .. } => "collateral/malformed",
            Self::Busy { .. } => "collateral/busy",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Quote(_) => "send a quote with its PCK certificate chain",
            Self::Platform(error) => return error.fix().to_owned(),
            Self::Address(_) => "give the collateral service as http://host:port or https://host:port",
            Self::Unreachable { .. } => "check that the collateral service runs and that this machine reaches it",
            Self::Refused { .. } => "check that the collateral service knows this platform",
            Self::Malformed { .. } => "check that the address belongs to a PCCS of version 4",
            Self::Busy { .. } => "try again in a few seconds",
        }
        .to_owned()
    }
}
