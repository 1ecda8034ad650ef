//! The accept loop and one task per connection.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tower::ServiceExt as _;

use crate::{
    Caller, Listener, Peer,
    admission::{Admission, Source},
    caller::Connection,
    listener::Kind,
};

/// What one listener grants its peers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait.
    pub connections: usize,
    /// Of them, connections of one IPv4 address or IPv6 /64 network; more are closed. Local peers are not limited.
    pub connections_per_source: usize,
    /// TLS handshakes at a time; with one more, the oldest of the source that has the most is closed.
    pub handshakes: usize,
    /// For a whole request head; between requests also the longest idle time.
    pub header_timeout: Duration,
    /// For a TLS handshake.
    pub handshake_timeout: Duration,
    /// For requests that are running when the listener is told to stop.
    pub drain_timeout: Duration,
}

impl Limits {
    /// For a service that strangers reach.
    pub const DEFAULT: Self = Self {
        connections: 1024,
        connections_per_source: 512,
        handshakes: 256,
        header_timeout: Duration::from_secs(15),
        handshake_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(5),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Serves `router` on `listener` with the default [`Limits`] until `shutdown` completes, then drains.
pub async fn serve(listener: Listener, router: Router, shutdown: impl Future<Output = ()> + Send) {
    serve_with(listener, router, shutdown, Limits::default()).await;
}

/// [`serve`] with other limits.
pub async fn serve_with(listener: Listener, router: Router, shutdown: impl Future<Output = ()> + Send, limits: Limits) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let admission = Admission::new(limits.handshakes, limits.connections_per_source);
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        // A TLS peer takes a slot after its handshake: until then it has shown nothing.
        let next = async {
            let permit = match &listener.kind {
                Kind::Tls(..) => None,
                _ => Arc::clone(&slots).acquire_owned().await.ok(),
            };
            (permit, accept(&listener.kind).await)
        };
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            (permit, accepted) = next => match accepted {
                Ok(accepted) => {
                    let (slots, admission) = (Arc::clone(&slots), Arc::clone(&admission));
                    let session = Session { router: router.clone(), limits, stopped: stopped.clone(), slots, admission, permit };
                    tasks.spawn(session.run(accepted));
                }
                Err(error) => {
                    // Out of descriptors or an aborted connection: give the others time to end.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drained = tokio::time::timeout(limits.drain_timeout, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("connections cut at shutdown");
    }
}

enum Accepted {
    Tcp(TcpStream, Peer),
    Tls(TcpStream, Peer, Arc<ServerConfig>),
    Unix(tokio::net::UnixStream, Peer),
    Vsock(tokio_vsock::VsockStream, Peer),
}

async fn accept(kind: &Kind) -> io::Result<Accepted> {
    Ok(match kind {
        Kind::Tcp(listener) => {
            let (stream, address) = accept_tcp(listener).await?;
            Accepted::Tcp(stream, address)
        }
        Kind::Tls(listener, config) => {
            let (stream, address) = accept_tcp(listener).await?;
            Accepted::Tls(stream, address, Arc::clone(config))
        }
        Kind::Unix { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            let peer = stream.peer_cred()?;
            Accepted::Unix(stream, Peer::Unix { pid: peer.pid().unwrap_or(0), uid: peer.uid() })
        }
        Kind::Vsock(listener) => {
            let (stream, address) = listener.accept().await?;
            Accepted::Vsock(stream, Peer::Vsock { cid: address.cid() })
        }
    })
}

async fn accept_tcp(listener: &tokio::net::TcpListener) -> io::Result<(TcpStream, Peer)> {
    let (stream, address) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, Peer::Tcp(address)))
}

struct Session {
    router: Router,
    limits: Limits,
    stopped: watch::Receiver<bool>,
    slots: Arc<Semaphore>,
    admission: Arc<Admission>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Session {
    async fn run(self, accepted: Accepted) {
        match accepted {
            Accepted::Tcp(stream, peer) => self.http(stream, peer, Vec::new()).await,
            Accepted::Unix(stream, peer) => self.http(stream, peer, Vec::new()).await,
            Accepted::Vsock(stream, peer) => self.http(stream, peer, Vec::new()).await,
            Accepted::Tls(stream, peer, config) => self.tls(stream, peer, config).await,
        }
    }

    async fn tls(mut self, stream: TcpStream, peer: Peer, config: Arc<ServerConfig>) {
        let handshake = self.admission.begin(Source::of(&peer)).run(tokio_rustls::TlsAcceptor::from(config).accept(stream));
        let stream = match tokio::time::timeout(self.limits.handshake_timeout, handshake).await {
            Ok(Some(Ok(stream))) => stream,
            Ok(Some(Err(error))) => return tracing::debug!(?peer, %error, "TLS handshake failed"),
            Ok(None) => return tracing::debug!(?peer, "TLS handshake gave way"),
            Err(_) => return tracing::debug!(?peer, "TLS handshake timed out"),
        };
        let slot = tokio::time::timeout(self.limits.handshake_timeout, Arc::clone(&self.slots).acquire_owned()).await;
        self.permit = slot.ok().and_then(Result::ok);
        if self.permit.is_none() {
            return tracing::debug!(?peer, "no slot for the connection");
        }
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        self.http(stream, peer, chain).await;
    }

    async fn http(mut self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, tls_chain: Vec<Vec<u8>>) {
        let source = Source::of(&peer);
        let established = self.admission.establish(source);
        if established.is_none() && source != Source::Local {
            return tracing::debug!(?peer, "too many connections of one source");
        }
        let connection = Connection { peer, tls_chain: Arc::new(tls_chain) };
        let router = self.router;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Caller::new(&connection));
            router.clone().oneshot(request.map(Body::new))
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        tokio::select! {
            result = serving.as_mut() => { ended(peer, result); return; }
            _ = self.stopped.wait_for(|stopped| *stopped) => serving.as_mut().graceful_shutdown(),
        }
        ended(peer, serving.await);
    }
}

fn ended(peer: Peer, result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(?peer, %error, "connection ended");
    }
}
