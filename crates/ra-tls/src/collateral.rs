//! Fetches the vendor's collateral from a collateral service (PCCS, or Intel's PCS), caches it until it expires, and asks once for many.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dstack_api::UserFacing;
use dstack_attestation::{Endorsements, PckIssuer, QuoteCollateral, QuoteError, UnverifiedQuote};
use dstack_rpc::{Answer, Client, ClientError, Endpoint, EndpointError};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;

const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: usize = 4 << 20;
/// Longest time an entry is used without asking again, however long the vendor allows.
const MAX_AGE: u64 = 24 * 3600;
/// Least time between two fetches for one platform, so that expired collateral at the service does not become a flood.
const MIN_AGE: u64 = 10;
/// Most platforms remembered.
const MAX_ENTRIES: usize = 256;

/// Why there is no collateral.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The quote does not say which platform it is from.
    #[error(transparent)]
    Quote(#[from] QuoteError),
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
}

impl UserFacing for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Quote(_) => "collateral/quote",
            Self::Address(_) => "collateral/address",
            Self::Unreachable { .. } => "collateral/unreachable",
            Self::Refused { .. } => "collateral/refused",
            Self::Malformed { .. } => "collateral/malformed",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Quote(_) => "send a quote with its PCK certificate chain",
            Self::Address(_) => "give the collateral service as http://host:port or https://host:port",
            Self::Unreachable { .. } => "check that the collateral service runs and that this machine reaches it",
            Self::Refused { .. } => "check that the collateral service knows this platform",
            Self::Malformed { .. } => "check that the address belongs to a PCCS of version 4",
        }
        .to_owned()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PlatformKey {
    fmspc: [u8; 6],
    issuer: PckIssuer,
}

#[derive(Clone)]
struct Cached {
    endorsements: Arc<Endorsements>,
    fetched_at: u64,
    use_until: u64,
}

type Slot = Arc<Mutex<Option<Cached>>>;

/// Client of one collateral service. Clones share the cache.
#[derive(Clone)]
pub struct CollateralClient {
    client: Client,
    base: String,
    slots: Arc<Mutex<HashMap<PlatformKey, Slot>>>,
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for CollateralClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollateralClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl CollateralClient {
    /// A client of the service at `url`, with or without `/sgx/certification/v4` at its end. `https` needs [`CollateralClient::with_tls`].
    pub fn new(url: &str) -> Result<Self, FetchError> {
        let trimmed = url.trim_end_matches('/').trim_end_matches("/sgx/certification/v4").trim_end_matches("/tdx/certification/v4");
        let endpoint = Endpoint::parse(trimmed).map_err(|error| FetchError::Address(Arc::new(error)))?;
        let base = endpoint.base().to_owned();
        let client = Client::new(endpoint).with_timeout(CALL_TIMEOUT).with_answer_limit(ANSWER_LIMIT);
        Ok(Self { client, base, slots: Arc::default(), clock: Arc::new(unix_now) })
    }

    /// Whom to trust on `https`. Collateral is signed, so this protects only against being kept from fresh collateral.
    #[must_use]
    pub fn with_tls(mut self, config: impl Into<Arc<rustls::ClientConfig>>) -> Self {
        self.client = self.client.with_tls(config);
        self
    }

    /// Another clock, Unix seconds; for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Endorsements for the platform of `quote`, from the cache while they are fresh. One fetch at a time per platform.
    pub async fn endorsements(&self, quote: &[u8]) -> Result<Arc<Endorsements>, FetchError> {
        let quote = UnverifiedQuote::parse(quote)?;
        self.endorsements_for(quote.fmspc()?, quote.pck_issuer()?).await
    }

    /// Endorsements for a platform model.
    pub async fn endorsements_for(&self, fmspc: [u8; 6], issuer: PckIssuer) -> Result<Arc<Endorsements>, FetchError> {
        let key = PlatformKey { fmspc, issuer };
        let slot = self.slot(key).await;
        let mut entry = slot.lock().await;
        let now = (self.clock)();
        if let Some(cached) = entry.as_ref()
            && (now < cached.use_until || now < cached.fetched_at.saturating_add(MIN_AGE))
            && now >= cached.fetched_at
        {
            return Ok(cached.endorsements.clone());
        }
        let collateral = self.fetch(key).await?;
        let use_until = expires_at(&collateral).unwrap_or(now).min(now.saturating_add(MAX_AGE));
        let endorsements = Arc::new(Endorsements::from(collateral));
        *entry = Some(Cached { endorsements: endorsements.clone(), fetched_at: now, use_until });
        tracing::info!(fmspc = hex::encode(fmspc), issuer = issuer.as_str(), "collateral fetched");
        Ok(endorsements)
    }

    async fn slot(&self, key: PlatformKey) -> Slot {
        let mut slots = self.slots.lock().await;
        if slots.len() >= MAX_ENTRIES && !slots.contains_key(&key) {
            slots.clear();
        }
        slots.entry(key).or_default().clone()
    }

    async fn fetch(&self, key: PlatformKey) -> Result<QuoteCollateral, FetchError> {
        let fmspc = hex::encode_upper(key.fmspc);
        let (crl, crl_path) = self.get(&format!("/sgx/certification/v4/pckcrl?ca={}&encoding=der", key.issuer.as_str())).await?;
        let (tcb, tcb_path) = self.get(&format!("/tdx/certification/v4/tcb?fmspc={fmspc}&update=standard")).await?;
        let (identity, identity_path) = self.get("/tdx/certification/v4/qe/identity?update=standard").await?;
        let (root_crl, root_crl_path) = self.get("/sgx/certification/v4/rootcacrl").await?;

        let tcb_chain = header(&tcb, &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"], &tcb_path)?;
        let identity_chain = header(&identity, &["SGX-Enclave-Identity-Issuer-Chain"], &identity_path)?;
        let (tcb_info, tcb_info_signature) = signed_document(&tcb.body, "tcbInfo", &tcb_path)?;
        let (qe_identity, qe_identity_signature) = signed_document(&identity.body, "enclaveIdentity", &identity_path)?;
        Ok(QuoteCollateral {
            pck_crl_issuer_chain: header(&crl, &["SGX-PCK-CRL-Issuer-Chain"], &crl_path)?,
            root_ca_crl: der_or_hex(root_crl.body).ok_or(FetchError::Malformed { path: root_crl_path, part: "revocation list" })?,
            pck_crl: der_or_hex(crl.body).ok_or(FetchError::Malformed { path: crl_path, part: "revocation list" })?,
            tcb_info_issuer_chain: tcb_chain,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: identity_chain,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        })
    }

    async fn get(&self, path: &str) -> Result<(Answer, String), FetchError> {
        let path = format!("{}{path}", self.base);
        let answer = match self.client.get(&path).await {
            Ok(answer) => answer,
            Err(error) => return Err(FetchError::Unreachable { path, error: Arc::new(error) }),
        };
        if answer.status.is_success() { Ok((answer, path)) } else { Err(FetchError::Refused { path, status: answer.status.as_u16() }) }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A percent-encoded PEM chain.
fn header(answer: &Answer, names: &[&str], path: &str) -> Result<String, FetchError> {
    let malformed = || FetchError::Malformed { path: path.to_owned(), part: "issuer chain" };
    let value = names.iter().find_map(|name| answer.headers.get(*name)).ok_or_else(malformed)?;
    percent_decode(value.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(malformed)
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == b'%' {
            let digits = [*rest.next()?, *rest.next()?];
            bytes.extend(hex::decode(digits).ok()?);
        } else {
            bytes.push(*byte);
        }
    }
    Some(bytes)
}

/// The signed document exactly as it stands in the answer, and its signature.
fn signed_document(body: &[u8], name: &'static str, path: &str) -> Result<(String, Vec<u8>), FetchError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, alias = "enclaveIdentity")]
        #[serde(rename = "tcbInfo")]
        document: &'a RawValue,
        signature: String,
    }
    let malformed = || FetchError::Malformed { path: path.to_owned(), part: name };
    let body: Body<'_> = serde_json::from_slice(body).map_err(|_| malformed())?;
    let signature = hex::decode(&body.signature).map_err(|_| malformed())?;
    Ok((body.document.get().to_owned(), signature))
}

/// A PCCS gives revocation lists as hex, Intel as DER.
fn der_or_hex(body: Vec<u8>) -> Option<Vec<u8>> {
    match body.first()? {
        0x30 if body.get(1).is_some_and(|length| *length >= 0x80) => Some(body),
        _ => hex::decode(body.trim_ascii()).ok(),
    }
}

/// Earliest `nextUpdate` of the signed documents and the revocation lists.
fn expires_at(collateral: &QuoteCollateral) -> Option<u64> {
    #[derive(Deserialize)]
    struct Dated {
        #[serde(rename = "nextUpdate", with = "time::serde::rfc3339")]
        next_update: time::OffsetDateTime,
    }
    let document = |text: &str| serde_json::from_str::<Dated>(text).ok().map(|dated| dated.next_update.unix_timestamp());
    let list = |der: &[u8]| x509_parser::parse_x509_crl(der).ok().and_then(|(_, crl)| crl.next_update().map(|time| time.timestamp()));
    let times =
        [document(&collateral.tcb_info)?, document(&collateral.qe_identity)?, list(&collateral.root_ca_crl)?, list(&collateral.pck_crl)?];
    times.into_iter().min().and_then(|time| u64::try_from(time).ok())
}
