//! Which platform model a quote is from, as far as its certificate chain proves it.

use std::{fmt, time::Duration};

use dstack_attestation::{P256_SHA256, PckChain, PckIssuer, QuoteError, TrustAnchors, UnverifiedQuote, UnverifiedSgxQuote};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// Longest chain a quote has: leaf, PCK CA, root.
const MAX_CHAIN: usize = 4;

/// Why a quote does not show a genuine platform. Its sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// No certificate chain inside, or one that says nothing.
    #[error("the quote's PCK certificate chain: {reason}")]
    NoChain {
        /// What the parser met.
        reason: String,
    },
    /// The chain ends elsewhere.
    #[error("the quote's PCK certificate chain does not end in a trusted root")]
    OtherRoot,
    /// Some certificate is past its date, or not there yet.
    #[error("the quote's PCK certificate chain is not valid at this time ({reason})")]
    Dates {
        /// The library's word.
        reason: String,
    },
    /// A signature or constraint is broken.
    #[error("the quote's PCK certificate chain does not hold ({reason})")]
    Broken {
        /// The library's word.
        reason: String,
    },
}

impl PlatformError {
    /// What the reader can do.
    pub(super) fn fix(&self) -> &'static str {
        match self {
            Self::NoChain { .. } => "send a quote with its PCK certificate chain",
            Self::OtherRoot => {
                "configure the simulated vendor root under [danger] if this is a software TEE; otherwise do not trust the machine"
            }
            Self::Dates { .. } => "check this machine's clock; else renew the platform's PCK certificate",
            Self::Broken { .. } => "do not trust the machine",
        }
    }
}

/// What runs on a platform: its quoting enclave and its TCB levels differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tee {
    /// Virtual machines.
    Tdx,
    /// Enclaves.
    Sgx,
}

impl Tee {
    /// `tdx` or `sgx`, as in the collateral service's paths.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Sgx => "sgx",
        }
    }
}

/// A platform model: what collateral is published for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Platform {
    tee: Tee,
    fmspc: [u8; 6],
    issuer: PckIssuer,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} platform {} of authority {}", self.tee.as_str(), hex::encode(self.fmspc), self.issuer.as_str())
    }
}

impl Platform {
    /// The platform of `quote`, if its PCK chain is signed up to one of `anchors` and valid at `now` (Unix seconds).
    ///
    /// A chain is public: it proves that such a platform exists, not that the quote is from it.
    pub fn of_quote(quote: &UnverifiedQuote, anchors: &TrustAnchors, now: u64) -> Result<Self, PlatformError> {
        Self::of_chain(Tee::Tdx, &quote.pck_chain().map_err(no_chain)?, anchors, now)
    }

    /// The same of an SGX quote.
    pub fn of_sgx_quote(quote: &UnverifiedSgxQuote, anchors: &TrustAnchors, now: u64) -> Result<Self, PlatformError> {
        Self::of_chain(Tee::Sgx, &quote.pck_chain().map_err(no_chain)?, anchors, now)
    }

    fn of_chain(tee: Tee, chain: &PckChain, anchors: &TrustAnchors, now: u64) -> Result<Self, PlatformError> {
        check_chain(chain, anchors, now)?;
        Ok(Self { tee, fmspc: chain.fmspc().map_err(no_chain)?, issuer: chain.issuer().map_err(no_chain)? })
    }

    /// A platform the caller names, such as an operator.
    #[must_use]
    pub const fn known(tee: Tee, fmspc: [u8; 6], issuer: PckIssuer) -> Self {
        Self { tee, fmspc, issuer }
    }

    /// What runs there.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        self.tee
    }

    /// Platform model, 6 bytes.
    #[must_use]
    pub const fn fmspc(&self) -> [u8; 6] {
        self.fmspc
    }

    /// Which of the vendor's authorities issued the PCK certificate.
    #[must_use]
    pub const fn issuer(&self) -> PckIssuer {
        self.issuer
    }
}

#[allow(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn no_chain(error: QuoteError) -> PlatformError {
    PlatformError::NoChain { reason: error.to_string() }
}

/// `chain`: DER, leaf first, the root last.
fn check_chain(chain: &[Vec<u8>], anchors: &TrustAnchors, now: u64) -> Result<(), PlatformError> {
    let [leaf, intermediates @ .., root] = chain else {
        return Err(PlatformError::NoChain { reason: format!("{} certificates, expected leaf, PCK CA and root", chain.len()) });
    };
    if chain.len() > MAX_CHAIN {
        return Err(PlatformError::NoChain { reason: format!("{} certificates, at most {MAX_CHAIN} are read", chain.len()) });
    }
    if anchors.find(root).is_none() {
        return Err(PlatformError::OtherRoot);
    }
    let (leaf, root) = (CertificateDer::from(leaf.as_slice()), CertificateDer::from(root.as_slice()));
    let intermediates: Vec<CertificateDer<'_>> = intermediates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let anchor = webpki::anchor_from_trusted_cert(&root).map_err(classify)?;
    let leaf = EndEntityCert::try_from(&leaf).map_err(classify)?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    leaf.verify_for_usage(&[P256_SHA256], &[anchor], &intermediates, time, KeyUsage::client_auth(), None, None)
        .map(|_| ())
        .map_err(classify)
}

#[allow(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn classify(error: webpki::Error) -> PlatformError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => PlatformError::Dates { reason: format!("{error}") },
        webpki::Error::UnknownIssuer => PlatformError::OtherRoot,
        error => PlatformError::Broken { reason: format!("{error}") },
    }
}
