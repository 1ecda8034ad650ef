//! What the hardware vendor says about its platforms: the endorsements of a TDX quote.

use dcap_qvl::QuoteCollateralV3;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Largest JSON form that is parsed.
const MAX_COLLATERAL_BYTES: usize = 4 << 20;

/// Text that is not collateral.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// Too long.
    #[error("collateral has {got} bytes, at most {MAX_COLLATERAL_BYTES} are read")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the JSON form.
    #[error("collateral is not valid JSON of the expected form: {reason}")]
    Json {
        /// What the parser met.
        reason: String,
    },
}

/// Collateral of one TDX platform model. Signed by the vendor; unverified until a quote is verified with it.
///
/// JSON: the field names below, PEM chains and the two signed documents as text, lists and signatures as hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuoteCollateral {
    /// PEM chain of the PCK revocation list's issuer.
    pub pck_crl_issuer_chain: String,
    /// Root revocation list, DER.
    #[serde(with = "hex::serde")]
    pub root_ca_crl: Vec<u8>,
    /// PCK revocation list, DER.
    #[serde(with = "hex::serde")]
    pub pck_crl: Vec<u8>,
    /// PEM chain of the TCB information's signer.
    pub tcb_info_issuer_chain: String,
    /// The TCB information, exactly as signed.
    pub tcb_info: String,
    /// Raw `r || s`.
    #[serde(with = "hex::serde")]
    pub tcb_info_signature: Vec<u8>,
    /// PEM chain of the quoting enclave identity's signer.
    pub qe_identity_issuer_chain: String,
    /// The quoting enclave's identity, exactly as signed.
    pub qe_identity: String,
    /// Raw `r || s`.
    #[serde(with = "hex::serde")]
    pub qe_identity_signature: Vec<u8>,
    /// PEM chain of the PCK certificate, for quotes that do not embed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pck_certificate_chain: Option<String>,
}

impl QuoteCollateral {
    /// Parses the JSON form.
    pub fn parse_json(text: &str) -> Result<Self, CollateralError> {
        if text.len() > MAX_COLLATERAL_BYTES {
            return Err(CollateralError::TooLong { got: text.len() });
        }
        serde_json::from_str(text).map_err(|error| CollateralError::Json { reason: error.to_string() })
    }

    /// Every certificate of the three chains that can be read.
    pub(crate) fn issuers(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        [&self.tcb_info_issuer_chain, &self.pck_crl_issuer_chain, &self.qe_identity_issuer_chain]
            .into_iter()
            .flat_map(|chain| CertificateDer::pem_slice_iter(chain.as_bytes()).flatten())
    }

    /// Whether one of the chains contains `certificate`.
    pub(crate) fn names(&self, certificate: &[u8]) -> bool {
        self.issuers().any(|der| der.as_ref() == certificate)
    }

    /// Unix seconds at which the older of the two signed documents was issued. Of use once their signatures hold.
    pub(crate) fn issued_at(&self) -> Option<u64> {
        #[derive(Deserialize)]
        struct Dated {
            #[serde(rename = "issueDate")]
            issued: String,
        }
        let date = |text: &str| {
            let dated: Dated = serde_json::from_str(text).ok()?;
            let time = OffsetDateTime::parse(&dated.issued, &Rfc3339).ok()?;
            u64::try_from(time.unix_timestamp()).ok()
        };
        Some(date(&self.tcb_info)?.min(date(&self.qe_identity)?))
    }

    pub(crate) fn to_dcap(&self) -> QuoteCollateralV3 {
        QuoteCollateralV3 {
            pck_crl_issuer_chain: self.pck_crl_issuer_chain.clone(),
            root_ca_crl: self.root_ca_crl.clone(),
            pck_crl: self.pck_crl.clone(),
            tcb_info_issuer_chain: self.tcb_info_issuer_chain.clone(),
            tcb_info: self.tcb_info.clone(),
            tcb_info_signature: self.tcb_info_signature.clone(),
            qe_identity_issuer_chain: self.qe_identity_issuer_chain.clone(),
            qe_identity: self.qe_identity.clone(),
            qe_identity_signature: self.qe_identity_signature.clone(),
            pck_certificate_chain: self.pck_certificate_chain.clone(),
        }
    }
}

/// The vendors' papers for a verification, unverified. What a platform does not use is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endorsements {
    /// For a TDX or SGX quote.
    pub collateral: Option<QuoteCollateral>,
    /// Certificates that the evidence itself does not carry, DER, in any order: VCEK or VLEK with its chain, AK, GPU, CPAK.
    pub certificates: Vec<Vec<u8>>,
    /// Revocation lists, DER.
    pub revocation_lists: Vec<Vec<u8>>,
}

impl Endorsements {
    /// Whether one of the papers contains `certificate`.
    pub(crate) fn contain(&self, certificate: &[u8]) -> bool {
        self.collateral.as_ref().is_some_and(|collateral| collateral.names(certificate))
            || self.certificates.iter().any(|given| given == certificate)
    }
}

impl From<QuoteCollateral> for Endorsements {
    fn from(collateral: QuoteCollateral) -> Self {
        Self { collateral: Some(collateral), ..Self::default() }
    }
}
