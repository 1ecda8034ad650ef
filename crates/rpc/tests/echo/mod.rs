//! A small service for the tests of this crate.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "shared by several test binaries")]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::Router;
use dstack_api::{
    Dispatch, Payload, RpcError,
    host_api::{Empty, GetSealingKeyRequest, GetSealingKeyResponse, HostApiRpc, HostApiServer, HostInfo, Notification},
    vmm::StatusRequest,
};
use dstack_rpc::{Caller, Client, Endpoint, GetPolicy, Limits, Listener, Peer, mount, serve_with};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, oneshot},
    task::JoinHandle,
};

#[derive(Default)]
pub struct Host {
    pub notified: AtomicUsize,
    pub changed: Notify,
    pub started: Notify,
    pub release: Notify,
}

impl HostApiRpc for Host {
    type Caller = Caller;

    async fn info(&self, caller: Caller, _: Empty) -> Result<HostInfo, RpcError> {
        let name = match caller.peer {
            Peer::Tcp(_) => "tcp".to_owned(),
            Peer::Unix { pid, uid } => format!("unix {pid} {uid}"),
            Peer::Vsock { cid } => format!("vsock {cid}"),
        };
        Ok(HostInfo { name, version: caller.tls_chain.len().to_string() })
    }

    async fn notify(&self, _: Caller, request: Notification) -> Result<Empty, RpcError> {
        match request.event.as_str() {
            "panic" => panic!("asked for"),
            "wait" => {
                self.started.notify_one();
                self.release.notified().await;
            }
            _ => {}
        }
        self.notified.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        Ok(Empty {})
    }

    async fn get_sealing_key(&self, _: Caller, _: GetSealingKeyRequest) -> Result<GetSealingKeyResponse, RpcError> {
        Err(RpcError::not_implemented("sealing", "see the roadmap"))
    }
}

/// Adds `Status` (echoes its request) and `Peer` (the peer's address) to the host API.
struct Echo(HostApiServer<Host>);

impl Dispatch for Echo {
    type Caller = Caller;
    const SERVICE: &'static str = "Echo";

    async fn dispatch(&self, caller: Caller, method: &str, input: Payload) -> Result<Vec<u8>, RpcError> {
        match method {
            "Status" => {
                let encoding = input.encoding;
                encoding.encode(&input.decode::<StatusRequest>()?)
            }
            "Peer" => Ok(format!("{:?}", caller.peer).into_bytes()),
            _ => self.0.dispatch(caller, method.strip_prefix("HostApi.").unwrap_or(method), input).await,
        }
    }
}

pub struct Server {
    address: Option<SocketAddr>,
    endpoint: Endpoint,
    host: Arc<Host>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub fn start(listener: Listener, endpoint: &str, host: Host, get: GetPolicy, limits: Limits) -> Self {
        let host = Arc::new(host);
        let router = Router::new().merge(mount("/api", Echo(HostApiServer(Arc::clone(&host))), get));
        let (stop, stopped) = oneshot::channel();
        let address = listener.local_addr();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve_with(listener, router, shutdown, limits));
        Self { address, endpoint: Endpoint::parse(endpoint).unwrap(), host, stop, task }
    }

    pub fn client(&self) -> Client {
        Client::new(self.endpoint.clone())
    }

    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    pub fn notified(&self) -> usize {
        self.host.notified.load(Ordering::SeqCst)
    }

    pub async fn wait_started(&self) {
        self.host.started.notified().await;
    }

    pub fn release(&self) {
        self.host.release.notify_one();
    }

    pub async fn wait_notified(&self, count: usize) {
        loop {
            let changed = self.host.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.notified() >= count {
                return;
            }
            changed.await;
        }
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}

pub async fn must_serve(get: GetPolicy) -> Server {
    must_serve_at("127.0.0.1:0".parse().unwrap(), Host::default(), get).await
}

pub async fn must_serve_at(address: SocketAddr, host: Host, get: GetPolicy) -> Server {
    must_serve_limited(address, host, get, Limits::default()).await
}

pub async fn must_serve_limited(address: SocketAddr, host: Host, get: GetPolicy, limits: Limits) -> Server {
    let listener = Listener::tcp(address).await.unwrap();
    let endpoint = format!("http://{}/api", listener.local_addr().unwrap());
    Server::start(listener, &endpoint, host, get, limits)
}

pub async fn must_serve_unix(path: &Path, mode: u32) -> Server {
    let listener = Listener::unix(path, mode).await.unwrap();
    Server::start(listener, &format!("unix:{}:/api", path.display()), Host::default(), GetPolicy::Refuse, Limits::default())
}

/// Sends bytes, returns what comes until the server closes.
pub async fn must_raw(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}
