//! pRPC on HTTP: one route per service, see [`mount`].

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::Response,
    routing::any,
};
use dstack_api::{Dispatch, Encoding, Payload, RpcError};
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::Caller;

/// Longest request body, in bytes.
pub const BODY_LIMIT: usize = 10 * 1024 * 1024;
/// A client has this long to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const OCTET_STREAM: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// Which methods may be called with `GET`, where a link or an image tag on a foreign page suffices to call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetPolicy {
    /// None.
    Refuse,
    /// These; they must not change anything. They end with their connection, others are carried through.
    ReadOnly(&'static [&'static str]),
}

struct Mounted<D> {
    dispatch: D,
    get: GetPolicy,
}

/// Routes `<base>/<Method>` and `<base>/<Service>.<Method>` to `dispatch`.
///
/// `base`: path with leading slash, "" or "/" for the root. Bodies and answers are JSON when the query has `json` or the
/// content type is JSON, protobuf otherwise; a `GET` takes its fields from the query and answers in JSON.
/// Errors are HTTP 400, JSON `{"error","code","fix"}` or, for protobuf callers, `{string message = 1}`. A call that may change
/// something and was read whole is carried through even when its caller goes away.
pub fn mount<D: Dispatch<Caller = Caller>>(base: &str, dispatch: D, get: GetPolicy) -> Router {
    let state = Arc::new(Mounted { dispatch, get });
    let route = format!("{}/{{method}}", base.trim_end_matches('/'));
    Router::new().route(&route, any(handle::<D>)).with_state(state)
}

async fn handle<D: Dispatch<Caller = Caller>>(
    State(mounted): State<Arc<Mounted<D>>>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let encoding = if parts.method == Method::GET { Encoding::Query } else { encoding_of(&parts) };
    let request_id = Caller::of(&parts).map(|caller| caller.request_id).unwrap_or_default();
    let mut response = match call(mounted, method, encoding, parts, body).await {
        Ok(bytes) => answer(StatusCode::OK, encoding, bytes),
        Err(error) => {
            tracing::debug!(request_id, code = error.code, error = error.message, "call refused");
            encoded_error(&error, encoding)
        }
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

async fn call<D: Dispatch<Caller = Caller>>(
    mounted: Arc<Mounted<D>>,
    method: String,
    encoding: Encoding,
    parts: Parts,
    body: Body,
) -> Result<Vec<u8>, RpcError> {
    let prefix = method.strip_prefix(D::SERVICE).and_then(|rest| rest.strip_prefix('.'));
    let method = prefix.map_or(method.clone(), str::to_owned);
    let caller = Caller::of(&parts)?;
    let bytes = match parts.method {
        Method::POST => read_body(body).await?,
        Method::GET if mounted.get.allows(&method) => parts.uri.query().unwrap_or_default().as_bytes().to_vec(),
        _ => {
            let cause = format!("{method} cannot be called with {}", parts.method);
            return Err(RpcError::new("rpc/method-not-allowed", cause, "use POST"));
        }
    };
    let is_read_only = mounted.get.allows(&method);
    let handler = async move { mounted.dispatch.dispatch(caller, &method, Payload { encoding, bytes }).await };
    // A panic must not take the connection.
    let outcome = if is_read_only {
        AssertUnwindSafe(handler).catch_unwind().await.map_err(drop)
    } else {
        // A task of its own: a caller that hangs up must not stop a change half way.
        tokio::spawn(handler).await.map_err(drop)
    };
    outcome.unwrap_or_else(|()| {
        tracing::error!("handler broke off");
        Err(RpcError::internal("the handler broke off"))
    })
}

impl GetPolicy {
    fn allows(self, method: &str) -> bool {
        match self {
            Self::Refuse => false,
            Self::ReadOnly(methods) => methods.contains(&method),
        }
    }
}

async fn read_body(body: Body) -> Result<Vec<u8>, RpcError> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect())
        .await
        .map_err(|_| RpcError::new("rpc/slow-request", "the body did not arrive in 30 s", "send the whole body at once"))?;
    match collected {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(RpcError::new("rpc/too-large", "the body exceeds 10 MiB", "send less")),
        Err(error) => Err(RpcError::bad_request(format!("reading the body: {error}"))),
    }
}

fn encoding_of(parts: &Parts) -> Encoding {
    let by_query = parts.uri.query().unwrap_or_default().split('&').any(|pair| matches!(pair, "json" | "json=" | "json=1" | "json=true"));
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if by_query || media_type.eq_ignore_ascii_case(JSON) { Encoding::Json } else { Encoding::Protobuf }
}

/// The error message that protobuf clients decode. `code` and `fix` are ours.
#[derive(prost::Message)]
struct ProtoError {
    #[prost(string, tag = "1")]
    message: String,
    #[prost(string, tag = "100")]
    code: String,
    #[prost(string, tag = "101")]
    fix: String,
}

/// `error` as a JSON answer, HTTP 400; for routes beside pRPC.
#[must_use]
pub fn error_response(error: &RpcError) -> Response {
    encoded_error(error, Encoding::Json)
}

fn encoded_error(error: &RpcError, encoding: Encoding) -> Response {
    let status = match error.code.as_str() {
        "rpc/too-large" => StatusCode::PAYLOAD_TOO_LARGE,
        "rpc/method-not-allowed" => StatusCode::METHOD_NOT_ALLOWED,
        "rpc/slow-request" => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::BAD_REQUEST,
    };
    let bytes = match encoding {
        Encoding::Protobuf => {
            let RpcError { message, code, fix } = error.clone();
            prost::Message::encode_to_vec(&ProtoError { message, code, fix })
        }
        Encoding::Json | Encoding::Query => serde_json::to_vec(error).unwrap_or_default(),
    };
    answer(status, encoding, bytes)
}

fn answer(status: StatusCode, encoding: Encoding, bytes: Vec<u8>) -> Response {
    let content_type = if encoding == Encoding::Protobuf { OCTET_STREAM } else { JSON };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-app-version", HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}
