//! Calls over HTTP/1.1.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use dstack_api::{RpcError, Transport, UserFacing};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::sync::Mutex;

use crate::{Endpoint, connect::connect, endpoint::Target};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// A call that got no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection.
    #[error("connecting")]
    Connect(#[source] io::Error),
    /// The TLS handshake was refused by one side.
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    /// An https address without [`Client::with_tls`].
    #[error("https needs a TLS configuration")]
    NoTlsConfig,
    /// The request cannot be written as HTTP.
    #[error("building the request")]
    Request(#[source] http::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("exchanging HTTP messages")]
    Http(#[source] hyper::Error),
    /// The peer was too slow.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The peer sent too much.
    #[error("the answer exceeds {0} bytes")]
    AnswerTooLarge(usize),
}

impl ClientError {
    /// Whether the peer was not there at all (so trying again later makes sense).
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout(_))
    }
}

impl UserFacing for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Tls(_) | Self::NoTlsConfig => "rpc/tls",
            Self::AnswerTooLarge(_) => "rpc/answer-too-large",
            _ => RpcError::UNREACHABLE,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Tls(_) => "check that both sides use the certificates that belong together",
            Self::NoTlsConfig => "give the certificate authority that the service's certificate comes from",
            Self::AnswerTooLarge(_) => "ask for less",
            _ => "check that the service runs and that its address is right",
        }
        .to_owned()
    }
}

/// A whole answer. Untrusted.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// HTTP headers.
    pub headers: HeaderMap,
    /// The body, within the client's limit.
    pub body: Vec<u8>,
}

/// An answer that is read piece by piece, without limit of size or time.
#[derive(Debug)]
pub struct Stream {
    /// HTTP status.
    pub status: StatusCode,
    /// HTTP headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Stream {
    /// The next piece, `None` at the end.
    ///
    /// Errors: the connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(ClientError::Http)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// Client of one service. Clones share one idle connection.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
    bearer: Option<HeaderValue>,
    timeout: Duration,
    answer_limit: usize,
    idle: Arc<Mutex<Option<Sender>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with a 30 s deadline per call and 16 MiB per answer.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, tls: None, bearer: None, timeout: CALL_TIMEOUT, answer_limit: ANSWER_LIMIT, idle: Arc::default() }
    }

    /// Whom to trust, and which certificate to show, on `https`.
    #[must_use]
    pub fn with_tls(mut self, config: impl Into<Arc<ClientConfig>>) -> Self {
        self.tls = Some(config.into());
        self.idle = Arc::default();
        self
    }

    /// Sends `Authorization: Bearer <token>`. A token that cannot stand in a header is not sent.
    #[must_use]
    pub fn with_bearer(mut self, token: &str) -> Self {
        self.bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// Deadline of a whole call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Longest answer, in bytes.
    #[must_use]
    pub fn with_answer_limit(mut self, bytes: usize) -> Self {
        self.answer_limit = bytes;
        self
    }

    /// Where it calls.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET` of a path from the server's root (not from the endpoint's base).
    ///
    /// Errors: no answer; any status is an answer.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.request(Method::GET, path, HeaderMap::new(), Vec::new()).await
    }

    /// Any request; `path` from the server's root, with its query.
    ///
    /// Errors: no answer; any status is an answer.
    pub async fn request(&self, method: Method, path: &str, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, ClientError> {
        let exchange = async {
            let (mut response, sender) = self.send(method, path, headers, body).await?;
            let mut body = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                let Ok(data) = frame.map_err(ClientError::Http)?.into_data() else { continue };
                if body.len() + data.len() > self.answer_limit {
                    return Err(ClientError::AnswerTooLarge(self.answer_limit));
                }
                body.extend_from_slice(&data);
            }
            if !sender.is_closed() {
                *self.idle.lock().await = Some(sender);
            }
            let (parts, _) = response.into_parts();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(self.timeout, exchange).await.map_err(|_| ClientError::Timeout(self.timeout))?
    }

    /// `GET` whose body is read as it comes; the deadline covers the head only.
    ///
    /// Errors: no answer.
    pub async fn stream(&self, path: &str) -> Result<Stream, ClientError> {
        let head = self.send(Method::GET, path, HeaderMap::new(), Vec::new());
        let (response, _) = tokio::time::timeout(self.timeout, head).await.map_err(|_| ClientError::Timeout(self.timeout))??;
        let (parts, body) = response.into_parts();
        Ok(Stream { status: parts.status, headers: parts.headers, body })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<(http::Response<Incoming>, Sender), ClientError> {
        let mut request = self.build(method, path, headers, body)?;
        let idle = self.idle.lock().await.take();
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                // Not written: the server had closed the idle connection.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(ClientError::Http(error.into_error())),
                },
            }
        }
        let mut sender = tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await.map_err(|_| ClientError::Timeout(CONNECT_TIMEOUT))??;
        let response = sender.send_request(request).await.map_err(ClientError::Http)?;
        Ok((response, sender))
    }

    async fn open(&self) -> Result<Sender, ClientError> {
        let stream = connect(&self.endpoint.target, self.tls.as_ref()).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(sender)
    }

    fn build(&self, method: Method, path: &str, headers: HeaderMap, body: Vec<u8>) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.endpoint.target {
            Target::Tcp { host, port, .. } => format!("{host}:{port}"),
            _ => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).body(Full::from(body)).map_err(ClientError::Request)?;
        let host = HeaderValue::from_str(&host).map_err(|error| ClientError::Request(error.into()))?;
        request.headers_mut().insert(header::HOST, host);
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(header::AUTHORIZATION, bearer.clone());
        }
        request.headers_mut().extend(headers);
        Ok(request)
    }
}

impl Transport for Client {
    async fn call(&self, method: &str, body: Vec<u8>) -> Result<Vec<u8>, RpcError> {
        let path = format!("{}/{method}?json", self.endpoint.base());
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let answer = self.request(Method::POST, &path, headers, body).await.map_err(|error| {
            let mut error = RpcError::from_user_facing(&error);
            error.message = format!("{}: {}", self.endpoint, error.message);
            error
        })?;
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        Err(parse_error(&answer))
    }
}

/// The peer's error, or what can be said about an answer that is none.
fn parse_error(answer: &Answer) -> RpcError {
    match serde_json::from_slice::<RpcError>(&answer.body) {
        Ok(error) if error.code.is_empty() => RpcError { code: "rpc/refused".to_owned(), ..error },
        Ok(error) => error,
        Err(_) => {
            let text: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
            let fix = match answer.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "give the access token of this service",
                StatusCode::NOT_FOUND => "check the base path of the address",
                _ => "check that the address belongs to a dstack service",
            };
            RpcError::new("rpc/refused", format!("HTTP {}: {text}", answer.status), fix)
        }
    }
}
