//! Why there is no collateral.

use std::{fmt, sync::Arc};

use dstack_api::UserFacing;
use dstack_attestation::{
    QuoteError,
    sev_snp::{ChipKeyFault, ReportError},
};
use dstack_rpc::{ClientError, EndpointError};

use super::PlatformError;

/// Who publishes papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Intel's, or a cache of it (PCCS).
    Pcs,
    /// AMD's, or a cache of it.
    Kds,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcs => "collateral service",
            Self::Kds => "AMD's key distribution service",
        })
    }
}

/// Why there is no collateral.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Not a quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Not a report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The quote does not show a genuine platform; nothing is asked for it.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The report does not say which certificate to ask for.
    #[error(transparent)]
    ChipKey(#[from] ChipKeyFault),
    /// A service's address.
    #[error("address of the {service}: {error}")]
    Address {
        /// Whose.
        service: Service,
        /// What is wrong with it.
        error: Arc<EndpointError>,
    },
    /// No answer.
    #[error("{service} at {path}: {error}")]
    Unreachable {
        /// Who does not answer.
        service: Service,
        /// Path asked for.
        path: String,
        /// What happened.
        error: Arc<ClientError>,
    },
    /// An answer that says no.
    #[error("{service} at {path} answers HTTP {status}")]
    Refused {
        /// Who says it.
        service: Service,
        /// Path asked for.
        path: String,
        /// Its status.
        status: u16,
    },
    /// An answer that cannot be read.
    #[error("{service} at {path} answers with a malformed {part}")]
    Malformed {
        /// Whose answer.
        service: Service,
        /// Path asked for.
        path: String,
        /// Which part.
        part: &'static str,
    },
    /// Every place of the cache is taken by a fetch that runs.
    #[error("collateral of {platforms} platforms is being fetched, no more at a time")]
    Busy {
        /// How many.
        platforms: usize,
    },
    /// Papers of too many chips were asked for.
    #[error("AMD's key distribution service was asked {per_minute} times in this minute, no more are allowed")]
    Paced {
        /// How many are allowed.
        per_minute: u32,
    },
}

impl FetchError {
    pub(super) fn address(service: Service, error: EndpointError) -> Self {
        Self::Address { service, error: error.into() }
    }

    /// Whether the evidence itself is at fault: its sender could have sent what needs no fetching, or evidence of a genuine platform.
    #[must_use]
    pub fn is_of_evidence(&self) -> bool {
        matches!(self, Self::Quote(_) | Self::Report(_) | Self::Platform(_))
    }
}

impl UserFacing for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Quote(_) => "collateral/quote",
            Self::Report(_) => "collateral/report",
            Self::Platform(_) => "collateral/platform",
            Self::ChipKey(_) => "collateral/chip-key",
            Self::Address { .. } => "collateral/address",
            Self::Unreachable { .. } => "collateral/unreachable",
            Self::Refused { .. } => "collateral/refused",
            Self::Malformed { .. } => "collateral/malformed",
            Self::Busy { .. } | Self::Paced { .. } => "collateral/busy",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Quote(_) => "send a quote with its PCK certificate chain",
            Self::Report(_) => "send a report whole and unchanged",
            Self::Platform(error) => return error.fix().to_owned(),
            Self::ChipKey(_) => "send the certificate of the key with the report: the host has it (`dstack verify` takes it with --chain)",
            Self::Address { .. } => "give the service as http://host:port or https://host:port",
            Self::Unreachable { service, .. } => return format!("check that the {service} runs and that this machine reaches it"),
            Self::Refused { status: 429, .. } | Self::Busy { .. } | Self::Paced { .. } => "try again in a minute",
            Self::Refused { service: Service::Pcs, .. } => "check that the collateral service knows this platform",
            Self::Refused { service: Service::Kds, .. } => {
                "check that AMD made this chip: its service knows every chip at every TCB it had"
            }
            Self::Malformed { service: Service::Pcs, .. } => "check that the address belongs to a PCCS of version 4",
            Self::Malformed { service: Service::Kds, .. } => "check that the address belongs to AMD's service or to a cache of it",
        }
        .to_owned()
    }
}
