//! A TDX quote, parsed but not verified.

use dcap_qvl::{
    config::PckCa,
    intel,
    quote::{Quote, Report},
};
use dstack_event_log::Registers;
use scale::Decode as _;

use crate::ReportData;

/// Largest quote that is parsed; genuine ones have about 5 KiB, some clouds pad them to 8,000 bytes.
pub(crate) const MAX_QUOTE_BYTES: usize = 128 << 10;
const TEE_TYPE_TDX: u32 = 0x81;

/// Why bytes are not a TDX quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// Too long.
    #[error("quote has {got} bytes, at most {MAX_QUOTE_BYTES} are read")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the structure of a version 4 or 5 quote.
    #[error("bytes are not a quote: {reason}")]
    Malformed {
        /// What the parser met.
        reason: String,
    },
    /// An SGX quote.
    #[error("quote is of TEE type {tee_type:#x}, expected TDX (0x81)")]
    NotTdx {
        /// Its type.
        tee_type: u32,
    },
    /// Something other than zeros follows the quote.
    #[error("{count} bytes follow the quote and are not zero padding")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// No PCK certificate inside, or one without Intel's extension.
    #[error("quote carries no usable PCK certificate: {reason}")]
    NoPck {
        /// What the parser met.
        reason: String,
    },
}

/// The measured fields of a TD report, 48 bytes each where not said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdFields {
    /// Measurement of the TD's initial contents.
    pub mrtd: [u8; 48],
    /// RTMR0 to RTMR3.
    pub rtmr: Registers,
    /// Set by the host before the TD starts.
    pub mr_config_id: [u8; 48],
    /// Set by the host.
    pub mr_owner: [u8; 48],
    /// Set by the host.
    pub mr_owner_config: [u8; 48],
    /// TD attributes, 8 bytes, little-endian bit field.
    pub td_attributes: [u8; 8],
    /// Measurement of the TDX module.
    pub mr_seam: [u8; 48],
    /// Signer of the TDX module; zero for Intel.
    pub mr_signer_seam: [u8; 48],
    /// Service TD bound to this one; zero if none, absent from TDX 1.0 reports.
    pub mr_service_td: Option<[u8; 48]>,
    /// What the requester of the quote put in.
    pub report_data: ReportData,
}

/// Which of Intel's authorities issued the PCK certificate; part of the address of its revocation list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PckIssuer {
    /// Single-package platforms.
    Processor,
    /// Multi-package platforms.
    Platform,
}

impl PckIssuer {
    /// `processor` or `platform`, as in the collateral service's paths.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }
}

/// A TDX quote of version 4 or 5. Nothing in it may be believed yet.
#[derive(Debug, Clone)]
pub struct UnverifiedQuote {
    quote: Quote,
    fields: TdFields,
}

impl UnverifiedQuote {
    /// Parses `bytes`. Zero padding after the quote is tolerated, anything else is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        if bytes.len() > MAX_QUOTE_BYTES {
            return Err(QuoteError::TooLong { got: bytes.len() });
        }
        let mut rest = bytes;
        let quote = Quote::decode(&mut rest).map_err(|error| QuoteError::Malformed { reason: one_line(&error) })?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(QuoteError::TrailingBytes { count: rest.len() });
        }
        if quote.header.tee_type != TEE_TYPE_TDX {
            return Err(QuoteError::NotTdx { tee_type: quote.header.tee_type });
        }
        let fields = td_fields(&quote.report).ok_or(QuoteError::NotTdx { tee_type: quote.header.tee_type })?;
        Ok(Self { quote, fields })
    }

    /// Version of the quote format.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.quote.header.version
    }

    /// User data of the quote header (20 bytes); identifies the quoting enclave on old stacks.
    #[must_use]
    pub fn header_user_data(&self) -> &[u8; 20] {
        &self.quote.header.user_data
    }

    /// What the quote says about the TD.
    #[must_use]
    pub fn fields(&self) -> &TdFields {
        &self.fields
    }

    /// Platform model (6 bytes) from the embedded PCK certificate: which TCB information to fetch.
    pub fn fmspc(&self) -> Result<[u8; 6], QuoteError> {
        intel::quote_fmspc(&self.quote).map_err(no_pck)
    }

    /// Issuer of the embedded PCK certificate: which revocation list to fetch.
    pub fn pck_issuer(&self) -> Result<PckIssuer, QuoteError> {
        match intel::quote_ca(&self.quote).map_err(no_pck)? {
            PckCa::Processor => Ok(PckIssuer::Processor),
            PckCa::Platform => Ok(PckIssuer::Platform),
        }
    }

    /// The embedded PCK chain, DER, leaf first.
    pub fn pck_chain(&self) -> Result<Vec<Vec<u8>>, QuoteError> {
        intel::extract_cert_chain(&self.quote).map_err(no_pck)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn no_pck(error: impl std::fmt::Display) -> QuoteError {
    QuoteError::NoPck { reason: one_line(&error) }
}

/// The decoder's text without its line breaks, at most 300 characters.
fn one_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

pub(crate) fn td_fields(report: &Report) -> Option<TdFields> {
    let td = report.as_td10()?;
    Some(TdFields {
        mrtd: td.mr_td,
        rtmr: Registers([td.rt_mr0, td.rt_mr1, td.rt_mr2, td.rt_mr3]),
        mr_config_id: td.mr_config_id,
        mr_owner: td.mr_owner,
        mr_owner_config: td.mr_owner_config,
        td_attributes: td.td_attributes,
        mr_seam: td.mr_seam,
        mr_signer_seam: td.mr_signer_seam,
        mr_service_td: report.as_td15().map(|report| report.mr_service_td),
        report_data: td.report_data,
    })
}
