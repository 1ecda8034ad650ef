//! What a guest asks to be signed: SCALE, signed by the key in it.
//!
//! ```text
//! V1 = confirm:String pubkey:Vec<u8> config:{org,subject,sans,server,client,ext_quote} quote:Vec<u8> event_log:Vec<u8>
//! V2 = confirm:String pubkey:Vec<u8> config:{…, ext_app_info, not_before?, not_after?} attestation: all remaining bytes
//! ```

use dstack_attestation::{Attestation, EnvelopeError, Evidence, GuestEvidence};
use dstack_event_log::parse_events;
use p256::{
    ecdsa::{Signature, VerifyingKey, signature::Verifier as _},
    pkcs8::DecodePublicKey as _,
};
use scale::{Decode, DecodeAll as _, Encode};

use crate::{CertKey, KeyError};

const CONFIRM: &str = "please sign cert:";
/// Largest request that is parsed.
const MAX_REQUEST_BYTES: usize = 12 << 20;

/// A request that is refused. The requester is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Too long.
    #[error("certificate request has {got} bytes, at most {MAX_REQUEST_BYTES} are read")]
    TooLong {
        /// Its size.
        got: usize,
    },
    /// Not the encoding.
    #[error("certificate request version {version} is malformed: {reason}")]
    Malformed {
        /// 1 or 2.
        version: u8,
        /// What the parser met.
        reason: String,
    },
    /// The words that keep such a signature from being made by accident are missing.
    #[error("certificate request does not say {CONFIRM:?}")]
    Confirm,
    /// The key is not P-256.
    #[error("certificate request has no P-256 public key")]
    PublicKey,
    /// Not signed by the key in it.
    #[error("certificate request is not signed by its own key")]
    Signature,
    /// No evidence in it, or none that can be read.
    #[error("evidence in the certificate request")]
    Evidence(#[from] EnvelopeError),
    /// The log of a version 1 request.
    #[error("event log in the certificate request is malformed")]
    EventLog,
}

/// What the certificate should be like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct CertConfig {
    /// Organization.
    pub org_name: Option<String>,
    /// Common name.
    pub subject: String,
    /// DNS names and addresses.
    pub subject_alt_names: Vec<String>,
    /// Extended key usage for servers.
    pub usage_server_auth: bool,
    /// Extended key usage for clients.
    pub usage_client_auth: bool,
    /// Put the evidence into the certificate.
    pub ext_quote: bool,
    /// Put the application's facts into the certificate (version 2).
    pub ext_app_info: bool,
    /// Unix seconds (version 2).
    pub not_before: Option<u64>,
    /// Unix seconds (version 2).
    pub not_after: Option<u64>,
}

#[derive(Encode, Decode)]
struct ConfigV1 {
    org_name: Option<String>,
    subject: String,
    subject_alt_names: Vec<String>,
    usage_server_auth: bool,
    usage_client_auth: bool,
    ext_quote: bool,
}

#[derive(Encode, Decode)]
struct RequestV1 {
    confirm: String,
    pubkey: Vec<u8>,
    config: ConfigV1,
    quote: Vec<u8>,
    event_log: Vec<u8>,
}

#[derive(Encode, Decode)]
struct HeadV2 {
    confirm: String,
    pubkey: Vec<u8>,
    config: CertConfig,
}

/// The part that differs by version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestBody {
    /// Raw quote and JSON log.
    V1 {
        /// Raw TDX quote.
        quote: Vec<u8>,
        /// JSON event log.
        event_log: Vec<u8>,
    },
    /// An attestation envelope, encoded.
    V2 {
        /// Its bytes.
        attestation: Vec<u8>,
    },
}

/// A request. Unverified until [`CertRequest::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertRequest {
    /// SubjectPublicKeyInfo DER of the key to certify.
    pub pubkey: Vec<u8>,
    /// What the certificate should be like. The requester chose all of it.
    pub config: CertConfig,
    /// The evidence.
    pub body: RequestBody,
}

impl CertRequest {
    /// A version 2 request for the key `spki_der`.
    #[must_use]
    pub fn new(spki_der: Vec<u8>, config: CertConfig, attestation: &Attestation) -> Self {
        Self { pubkey: spki_der, config, body: RequestBody::V2 { attestation: attestation.encode() } }
    }

    /// Parses a request of `version` 1 or 2, without checking its signature.
    pub fn decode(version: u8, bytes: &[u8]) -> Result<Self, CsrError> {
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(CsrError::TooLong { got: bytes.len() });
        }
        let malformed = |error: scale::Error| CsrError::Malformed { version, reason: error.to_string() };
        let (confirm, request) = match version {
            1 => {
                let request = RequestV1::decode_all(&mut &*bytes).map_err(malformed)?;
                let config = CertConfig {
                    org_name: request.config.org_name,
                    subject: request.config.subject,
                    subject_alt_names: request.config.subject_alt_names,
                    usage_server_auth: request.config.usage_server_auth,
                    usage_client_auth: request.config.usage_client_auth,
                    ext_quote: request.config.ext_quote,
                    ..CertConfig::default()
                };
                let body = RequestBody::V1 { quote: request.quote, event_log: request.event_log };
                (request.confirm, Self { pubkey: request.pubkey, config, body })
            }
            2 => {
                let mut rest = bytes;
                let head = HeadV2::decode(&mut rest).map_err(malformed)?;
                let body = RequestBody::V2 { attestation: rest.to_vec() };
                (head.confirm, Self { pubkey: head.pubkey, config: head.config, body })
            }
            _ => return Err(CsrError::Malformed { version, reason: "no such version".to_owned() }),
        };
        if confirm == CONFIRM { Ok(request) } else { Err(CsrError::Confirm) }
    }

    /// Parses a request and checks that `signature` (ASN.1 DER, ECDSA P-256/SHA-256 over all of `bytes`) is by the key in it.
    pub fn verify(version: u8, bytes: &[u8], signature: &[u8]) -> Result<Self, CsrError> {
        let request = Self::decode(version, bytes)?;
        let key = VerifyingKey::from_public_key_der(&request.pubkey).map_err(|_| CsrError::PublicKey)?;
        let signature = Signature::from_der(signature).map_err(|_| CsrError::Signature)?;
        key.verify(bytes, &signature).map_err(|_| CsrError::Signature)?;
        Ok(request)
    }

    /// Version on the wire.
    #[must_use]
    pub fn version(&self) -> u8 {
        match self.body {
            RequestBody::V1 { .. } => 1,
            RequestBody::V2 { .. } => 2,
        }
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let confirm = CONFIRM.to_owned();
        match &self.body {
            RequestBody::V1 { quote, event_log } => {
                let config = self.config.clone();
                RequestV1 {
                    confirm,
                    pubkey: self.pubkey.clone(),
                    config: ConfigV1 {
                        org_name: config.org_name,
                        subject: config.subject,
                        subject_alt_names: config.subject_alt_names,
                        usage_server_auth: config.usage_server_auth,
                        usage_client_auth: config.usage_client_auth,
                        ext_quote: config.ext_quote,
                    },
                    quote: quote.clone(),
                    event_log: event_log.clone(),
                }
                .encode()
            }
            RequestBody::V2 { attestation } => {
                let mut bytes = HeadV2 { confirm, pubkey: self.pubkey.clone(), config: self.config.clone() }.encode();
                bytes.extend_from_slice(attestation);
                bytes
            }
        }
    }

    /// Encodes and signs: `(request, signature)`. `key` must be the one in the request.
    pub fn sign(&self, key: &CertKey) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
        let bytes = self.encode();
        let signature = key.sign(&bytes)?;
        Ok((bytes, signature))
    }

    /// The evidence inside, of a TD, unverified.
    ///
    /// Errors: malformed, or of another platform.
    pub fn evidence(&self) -> Result<Evidence, CsrError> {
        Ok(self.guest_evidence()?.into_td()?)
    }

    /// The evidence inside, unverified.
    pub fn guest_evidence(&self) -> Result<GuestEvidence, CsrError> {
        match &self.body {
            RequestBody::V2 { attestation } => Ok(GuestEvidence::decode(attestation)?),
            RequestBody::V1 { quote, event_log } => {
                let text = std::str::from_utf8(event_log).map_err(|_| CsrError::EventLog)?;
                let event_log = parse_events(text).map_err(|_| CsrError::EventLog)?;
                let quote = quote.clone();
                Ok(Evidence { quote, event_log, vm_config: String::new(), report_data: None, app_compose: None }.into())
            }
        }
    }
}
