//! One request per document, in the form of Intel's PCS version 4.

use std::{sync::Arc, time::Duration};

use dstack_api::UserFacing;
use dstack_attestation::{Endorsements, PckIssuer, QuoteCollateral, QuoteError, UnverifiedQuote};
use dstack_rpc::{Answer, Client, ClientError, Endpoint, EndpointError};
use http::StatusCode;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Intel's own service.
pub const INTEL_PCS_URL: &str = "https://api.trustedservices.intel.com";
/// Intel publishes the root's revocation list here; caches serve it as `rootcacrl`.
const INTEL_ROOT_CRL_HOST: &str = "https://certificates.trustedservices.intel.com";
const INTEL_ROOT_CRL_PATH: &str = "/IntelSGXRootCA.der";
const TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: usize = 4 << 20;

/// Collateral that could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The configured address.
    #[error("address of the collateral service")]
    Address(#[from] EndpointError),
    /// The service.
    #[error("fetching {document} from {url}")]
    Unreachable {
        /// Which document.
        document: &'static str,
        /// From where.
        url: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// The service has no such document.
    #[error("{url} answered {status} for {document}")]
    Refused {
        /// Which document.
        document: &'static str,
        /// From where.
        url: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The service's answer is not what it should be.
    #[error("{document} from {url} is malformed: {reason}")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// From where.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The quote does not say which platform it is from.
    #[error("the quote names no platform")]
    Quote(#[from] QuoteError),
}

impl FetchError {
    /// The fault lies with the service or the way to it, so that trying later or elsewhere makes sense.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        !matches!(self, Self::Quote(_))
    }
}

impl UserFacing for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "collateral/bad-address",
            Self::Unreachable { .. } => "collateral/unreachable",
            Self::Refused { .. } => "collateral/unknown-platform",
            Self::Malformed { .. } => "collateral/malformed",
            Self::Quote(_) => "collateral/bad-quote",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Address(error) => error.fix(),
            Self::Unreachable { url, .. } => format!("check that {url} can be reached from here, or name another collateral service"),
            Self::Refused { .. } => "check that the collateral service belongs to the vendor that made this platform".to_owned(),
            Self::Malformed { .. } => "name another collateral service".to_owned(),
            Self::Quote(_) => "ask for a quote with an embedded certificate chain".to_owned(),
        }
    }
}

/// A collateral service.
#[derive(Debug, Clone)]
pub struct CollateralSource {
    client: Client,
    /// The root's revocation list, where it lives elsewhere.
    root_crl: Option<Client>,
}

impl CollateralSource {
    /// A service at `url`, for instance [`INTEL_PCS_URL`] or `http://127.0.0.1:8081`; a `/sgx/certification/v4` at its
    /// end is ignored. `tls` is used for https addresses.
    ///
    /// Errors: not an address.
    pub fn new(url: &str, tls: &Arc<ClientConfig>) -> Result<Self, FetchError> {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/sgx/certification/v4").or_else(|| base.strip_suffix("/tdx/certification/v4")).unwrap_or(base);
        let client = |address: &str| {
            let client = Client::new(Endpoint::parse(address)?).with_tls(Arc::clone(tls));
            Ok::<_, EndpointError>(client.with_timeout(TIMEOUT).with_answer_limit(ANSWER_LIMIT))
        };
        let root_crl = if base.starts_with(INTEL_PCS_URL) { Some(client(INTEL_ROOT_CRL_HOST)?) } else { None };
        Ok(Self { client: client(base)?, root_crl })
    }

    /// The collateral of the platform that `quote` says it is from.
    ///
    /// Errors: see [`FetchError`].
    pub async fn fetch(&self, quote: &UnverifiedQuote) -> Result<Endorsements, FetchError> {
        self.fetch_platform(quote.fmspc()?, quote.pck_issuer()?).await
    }

    /// The collateral of a platform model.
    ///
    /// Errors: see [`FetchError`].
    pub async fn fetch_platform(&self, fmspc: [u8; 6], issuer: PckIssuer) -> Result<Endorsements, FetchError> {
        let (pck_crl, tcb, identity, root_ca_crl) = tokio::try_join!(
            self.document("PCK revocation list", format!("/sgx/certification/v4/pckcrl?ca={}&encoding=der", issuer.as_str())),
            self.document("TCB information", format!("/tdx/certification/v4/tcb?fmspc={}", hex::encode_upper(fmspc))),
            self.document("quoting enclave identity", "/tdx/certification/v4/qe/identity".to_owned()),
            self.root_crl(),
        )?;
        let (tcb_info, tcb_info_signature) = tcb.signed::<TcbAnswer>()?;
        let (qe_identity, qe_identity_signature) = identity.signed::<IdentityAnswer>()?;
        let collateral = QuoteCollateral {
            pck_crl_issuer_chain: pck_crl.chain(&["SGX-PCK-CRL-Issuer-Chain"])?,
            root_ca_crl,
            pck_crl: pck_crl.der()?,
            tcb_info_issuer_chain: tcb.chain(&["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"])?,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: identity.chain(&["SGX-Enclave-Identity-Issuer-Chain"])?,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        };
        Ok(Endorsements { collateral })
    }

    async fn root_crl(&self) -> Result<Vec<u8>, FetchError> {
        const NAME: &str = "root revocation list";
        match &self.root_crl {
            Some(client) => fetch(client, NAME, INTEL_ROOT_CRL_PATH.to_owned()).await?.der(),
            None => self.document(NAME, "/sgx/certification/v4/rootcacrl".to_owned()).await?.der(),
        }
    }

    async fn document(&self, name: &'static str, path: String) -> Result<Document, FetchError> {
        fetch(&self.client, name, path).await
    }
}

async fn fetch(client: &Client, document: &'static str, path: String) -> Result<Document, FetchError> {
    let url = client.endpoint().to_string();
    let path = format!("{}{path}", client.endpoint().base());
    let answer = client.get(&path).await.map_err(|source| FetchError::Unreachable { document, url: url.clone(), source })?;
    if answer.status != StatusCode::OK {
        return Err(FetchError::Refused { document, url, status: answer.status });
    }
    Ok(Document { name: document, url, answer })
}

/// An answer with its name, for errors.
struct Document {
    name: &'static str,
    url: String,
    answer: Answer,
}

/// `{"<document>": …, "signature": "<hex>"}`; the document's text is what is signed.
trait SignedAnswer: for<'de> Deserialize<'de> {
    fn into_parts(self) -> (Box<RawValue>, String);
}

#[derive(Deserialize)]
struct TcbAnswer {
    #[serde(rename = "tcbInfo")]
    tcb_info: Box<RawValue>,
    signature: String,
}

#[derive(Deserialize)]
struct IdentityAnswer {
    #[serde(rename = "enclaveIdentity")]
    enclave_identity: Box<RawValue>,
    signature: String,
}

impl SignedAnswer for TcbAnswer {
    fn into_parts(self) -> (Box<RawValue>, String) {
        (self.tcb_info, self.signature)
    }
}

impl SignedAnswer for IdentityAnswer {
    fn into_parts(self) -> (Box<RawValue>, String) {
        (self.enclave_identity, self.signature)
    }
}

impl Document {
    fn malformed(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Malformed { document: self.name, url: self.url.clone(), reason: reason.into() }
    }

    fn signed<T: SignedAnswer>(&self) -> Result<(String, Vec<u8>), FetchError> {
        let parsed: T = serde_json::from_slice(&self.answer.body).map_err(|error| self.malformed(error.to_string()))?;
        let (document, signature) = parsed.into_parts();
        let signature = hex::decode(signature).map_err(|_| self.malformed("the signature is not hex"))?;
        Ok((document.get().to_owned(), signature))
    }

    /// An issuer chain: PEM, percent-encoded in a header.
    fn chain(&self, names: &[&str]) -> Result<String, FetchError> {
        let header = names.iter().find_map(|name| self.answer.headers.get(*name));
        let header = header.ok_or_else(|| self.malformed(format!("no header {}", names.join(" or "))))?;
        let text = header.to_str().map_err(|_| self.malformed("the issuer chain is not ASCII"))?;
        let decoded = percent_decode_str(text).decode_utf8().map_err(|_| self.malformed("the issuer chain is not UTF-8"))?;
        Ok(decoded.into_owned())
    }

    /// DER, or DER in hex as caches send the root's list.
    fn der(&self) -> Result<Vec<u8>, FetchError> {
        let body = &self.answer.body;
        if body.first() == Some(&0x30) && body.get(1).is_some_and(|length| *length >= 0x80) {
            return Ok(body.clone());
        }
        hex::decode(body.trim_ascii()).map_err(|_| self.malformed("it is neither DER nor hex"))
    }
}
