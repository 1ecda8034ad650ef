//! TDX and SGX quotes, parsed but not verified.

use std::ops::Deref;

use dcap_qvl::{
    config::PckCa,
    intel,
    quote::{EnclaveReport, Quote, Report},
};
use dstack_event_log::Registers;
use scale::Decode as _;

use crate::ReportData;

/// Largest quote that is parsed; genuine ones have about 5 KiB, some clouds pad them to 8,000 bytes.
pub(crate) const MAX_QUOTE_BYTES: usize = 128 << 10;
const TEE_TYPE_TDX: u32 = 0x81;
const TEE_TYPE_SGX: u32 = 0;

/// Why bytes are not a quote of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// Too long.
    #[error("quote has {got} bytes, at most {MAX_QUOTE_BYTES} are read")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the structure of a quote.
    #[error("bytes are not a quote: {reason}")]
    Malformed {
        /// What the parser met.
        reason: String,
    },
    /// A quote of another kind.
    #[error("quote version {version} of TEE type {tee_type:#x} is not a {expected} quote")]
    OtherKind {
        /// Its version.
        version: u16,
        /// Its type: 0 SGX, 0x81 TDX.
        tee_type: u32,
        /// What was expected.
        expected: &'static str,
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
    /// Versions of TDX module and firmware at the launch, 16 bytes.
    pub tee_tcb_svn: [u8; 16],
    /// The same now, after updates that kept the TD; absent from TDX 1.0 reports.
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// Attributes of the TDX module, 8 bytes.
    pub seam_attributes: [u8; 8],
    /// Processor state the TD may use, 8 bytes.
    pub xfam: [u8; 8],
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

/// The measured fields of an SGX enclave report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnclaveFields {
    /// Measurement of the enclave.
    pub mr_enclave: [u8; 32],
    /// Hash of the enclave signer's key.
    pub mr_signer: [u8; 32],
    /// Product number given by the signer.
    pub isv_prod_id: u16,
    /// Security version given by the signer.
    pub isv_svn: u16,
    /// Versions of the processor's microcode and firmware.
    pub cpu_svn: [u8; 16],
    /// Enclave attributes: flags (8 bytes), then XFRM (8 bytes).
    pub attributes: [u8; 16],
    /// Selected state extensions.
    pub misc_select: u32,
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

/// Decodes one quote that may be followed by zeros.
fn decode(bytes: &[u8]) -> Result<Quote, QuoteError> {
    if bytes.len() > MAX_QUOTE_BYTES {
        return Err(QuoteError::TooLong { got: bytes.len() });
    }
    let mut rest = bytes;
    let quote = Quote::decode(&mut rest).map_err(|error| QuoteError::Malformed { reason: one_line(&error) })?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(QuoteError::TrailingBytes { count: rest.len() });
    }
    Ok(quote)
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
        let quote = decode(bytes)?;
        let (version, tee_type) = (quote.header.version, quote.header.tee_type);
        let fields = td_fields(&quote.report).filter(|_| tee_type == TEE_TYPE_TDX);
        let fields = fields.ok_or(QuoteError::OtherKind { version, tee_type, expected: "TDX" })?;
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

    /// The embedded PCK chain.
    pub fn pck_chain(&self) -> Result<PckChain, QuoteError> {
        PckChain::of(&self.quote)
    }
}

/// An SGX quote of version 3. Nothing in it may be believed yet.
#[derive(Debug, Clone)]
pub struct UnverifiedSgxQuote {
    quote: Quote,
    fields: EnclaveFields,
}

impl UnverifiedSgxQuote {
    /// Parses `bytes`. Zero padding after the quote is tolerated, anything else is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let quote = decode(bytes)?;
        let (version, tee_type) = (quote.header.version, quote.header.tee_type);
        let fields = quote.report.as_sgx().filter(|_| version == 3 && tee_type == TEE_TYPE_SGX).map(enclave_fields);
        let fields = fields.ok_or(QuoteError::OtherKind { version, tee_type, expected: "SGX version 3" })?;
        Ok(Self { quote, fields })
    }

    /// What the quote says about the enclave.
    #[must_use]
    pub fn fields(&self) -> &EnclaveFields {
        &self.fields
    }

    /// Version of the quote format.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.quote.header.version
    }

    /// The embedded PCK chain.
    pub fn pck_chain(&self) -> Result<PckChain, QuoteError> {
        PckChain::of(&self.quote)
    }
}

/// The certificates of a machine's quoting enclave as a quote carries them: DER, leaf first. Reading them costs more than the rest of a quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PckChain(Vec<Vec<u8>>);

impl PckChain {
    fn of(quote: &Quote) -> Result<Self, QuoteError> {
        intel::extract_cert_chain(quote).map(Self).map_err(no_pck)
    }

    fn leaf(&self) -> Result<&[u8], QuoteError> {
        self.0.first().map(Vec::as_slice).ok_or_else(|| no_pck("the chain is empty"))
    }

    /// Platform model (6 bytes): which TCB information to fetch.
    pub fn fmspc(&self) -> Result<[u8; 6], QuoteError> {
        Ok(intel::parse_pck_extension(self.leaf()?).map_err(no_pck)?.fmspc)
    }

    /// Who issued the leaf: which revocation list to fetch.
    pub fn issuer(&self) -> Result<PckIssuer, QuoteError> {
        match intel::pck_ca(self.leaf()?).map_err(no_pck)? {
            PckCa::Processor => Ok(PckIssuer::Processor),
            PckCa::Platform => Ok(PckIssuer::Platform),
        }
    }
}

impl Deref for PckChain {
    type Target = [Vec<u8>];

    fn deref(&self) -> &[Vec<u8>] {
        &self.0
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
        tee_tcb_svn: td.tee_tcb_svn,
        tee_tcb_svn2: report.as_td15().map(|report| report.tee_tcb_svn2),
        seam_attributes: td.seam_attributes,
        xfam: td.xfam,
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

fn enclave_fields(report: &EnclaveReport) -> EnclaveFields {
    EnclaveFields {
        mr_enclave: report.mr_enclave,
        mr_signer: report.mr_signer,
        isv_prod_id: report.isv_prod_id,
        isv_svn: report.isv_svn,
        cpu_svn: report.cpu_svn,
        attributes: report.attributes,
        misc_select: report.misc_select,
        report_data: report.report_data,
    }
}
