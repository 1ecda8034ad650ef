//! Who is calling, as far as the transport can tell.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::extract::FromRequestParts;
use dstack_api::RpcError;
use http::request::Parts;

/// The far end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Address and port; an address proves nothing.
    Tcp(SocketAddr),
    /// Process of this machine, as the kernel reports it at connect time.
    Unix {
        /// Process id, 0 when unknown.
        pid: i32,
        /// Effective user.
        uid: u32,
    },
    /// Guest or host on the vsock of this machine.
    Vsock {
        /// Context id, given by the hypervisor.
        cid: u32,
    },
}

/// The caller of one request. Also an axum extractor for routes that are not pRPC.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where the connection comes from.
    pub peer: Peer,
    /// TLS client certificates, DER, leaf first. The TLS handshake proved possession of the leaf's key; whom the
    /// chain belongs to was checked as far as the listener's `rustls::ServerConfig` does. Empty without TLS or certificate.
    pub tls_chain: Arc<Vec<Vec<u8>>>,
    /// Fresh for each request; sent back as `X-Request-Id`.
    pub request_id: String,
}

/// What a connection knows; every request on it carries a copy.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    pub(crate) tls_chain: Arc<Vec<Vec<u8>>>,
}

impl Caller {
    pub(crate) fn of(parts: &Parts) -> Result<Self, RpcError> {
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        Err(RpcError::internal("the router is not served by dstack_rpc::serve"))
    }

    pub(crate) fn new(connection: &Connection) -> Self {
        Self { peer: connection.peer, tls_chain: Arc::clone(&connection.tls_chain), request_id: next_request_id() }
    }
}

/// 32 hexadecimal digits: a random number of this process, and a count. Asking the kernel for randomness each time would cost more than
/// some answers do.
fn next_request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| uuid::Uuid::new_v4().as_u64_pair().1);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}{:016x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = axum::response::Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Self::of(parts).map_err(|error| crate::error_response(&error))
    }
}
