//! How a call travels: one HTTP request per call, body in protobuf or JSON, errors as HTTP 400.

use serde::{Serialize, de::DeserializeOwned};

use crate::UserFacing;

/// How fields travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`; bytes are hex, absent fields take their defaults.
    Json,
    /// `application/octet-stream`, proto3.
    Protobuf,
    /// Fields in the query of a `GET`; the answer is JSON.
    Query,
}

impl Encoding {
    /// Encodes a message. An empty message is `null` in JSON.
    ///
    /// Errors: a message that JSON cannot express; none of ours is.
    pub fn encode<M: prost::Message + Serialize>(self, message: &M) -> Result<Vec<u8>, RpcError> {
        match self {
            Self::Protobuf => Ok(message.encode_to_vec()),
            Self::Json | Self::Query => {
                let text = serde_json::to_vec(message).map_err(|error| RpcError::internal(error.to_string()))?;
                Ok(if text == b"{}" { b"null".to_vec() } else { text })
            }
        }
    }
}

/// A body with its encoding. Untrusted when it comes from a peer.
#[derive(Debug, Clone)]
pub struct Payload {
    /// How `bytes` is to be read, and how the answer is to be written.
    pub encoding: Encoding,
    /// The body as received; an empty body is the default message.
    pub bytes: Vec<u8>,
}

impl Payload {
    /// A JSON body.
    #[must_use]
    pub fn json(bytes: Vec<u8>) -> Self {
        Self { encoding: Encoding::Json, bytes }
    }

    /// Decodes the body.
    ///
    /// Errors: `rpc/bad-request` with the position for JSON.
    pub fn decode<M: prost::Message + Default + DeserializeOwned>(self) -> Result<M, RpcError> {
        if self.bytes.is_empty() || (self.encoding == Encoding::Json && self.bytes == b"null") {
            return Ok(M::default());
        }
        match self.encoding {
            Encoding::Protobuf => M::decode(self.bytes.as_slice()).map_err(|error| RpcError::bad_request(error.to_string())),
            Encoding::Json => serde_json::from_slice(&self.bytes).map_err(|error| RpcError::bad_request(error.to_string())),
            Encoding::Query => serde_html_form::from_bytes(&self.bytes).map_err(|error| RpcError::bad_request(error.to_string())),
        }
    }
}

/// What a failed call tells its caller. On the wire `{"error": message, "code": …, "fix": …}`; existing clients read `error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, serde::Deserialize)]
#[error("{message}")]
pub struct RpcError {
    /// The cause, for a person.
    #[serde(rename = "error")]
    pub message: String,
    /// Stable code, for scripts; empty when the peer is an older implementation.
    #[serde(default)]
    pub code: String,
    /// What to do; may be empty.
    #[serde(default)]
    pub fix: String,
}

impl RpcError {
    /// Code of a call that did not reach its peer; trying again may help.
    pub const UNREACHABLE: &str = "rpc/unreachable";

    /// An error with its three parts.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { message: message.into(), code: code.to_owned(), fix: fix.into() }
    }

    /// From an error that is made for users; the message is the whole source chain joined by `: `.
    #[must_use]
    pub fn from_user_facing(error: &dyn UserFacing) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(error.code(), message, error.fix())
    }

    /// The peer sent something that cannot be read.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new("rpc/bad-request", message, "compare the request with the API reference")
    }

    /// Our own failure.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("rpc/internal", message, "read the service's log; this is a defect worth reporting")
    }

    /// The peer could not be reached or broke off.
    #[must_use]
    pub fn transport(message: impl Into<String>) -> Self {
        Self::new(Self::UNREACHABLE, message, "check that the service runs and that its address is right")
    }

    /// The service has no such method.
    #[must_use]
    pub fn unknown_method(service: &str, method: &str) -> Self {
        let method: String = method.chars().take(64).collect();
        Self::new("rpc/unknown-method", format!("Service not found: {service}.{method}"), "check the method's name")
    }

    /// The method belongs to the contract and this build does not have it yet.
    #[must_use]
    pub fn not_implemented(what: &str, pointer: &str) -> Self {
        Self::new("rpc/not-implemented", format!("{what} is not implemented"), pointer)
    }
}

/// A service that can be called by method name. Generated for each service in `proto/`.
pub trait Dispatch: Send + Sync + 'static {
    /// What the transport knows about the peer.
    type Caller: Send + 'static;
    /// Name in the proto file; an optional `<SERVICE>.` prefix of the method is accepted by the transport.
    const SERVICE: &'static str;

    /// Decodes, calls and encodes the answer in the same encoding.
    fn dispatch(&self, caller: Self::Caller, method: &str, input: Payload) -> impl Future<Output = Result<Vec<u8>, RpcError>> + Send;
}

/// Carries one JSON call to a server.
pub trait Transport: Send + Sync {
    /// Sends `body` to `method`; returns the JSON answer.
    fn call(&self, method: &str, body: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, RpcError>> + Send;
}
