//! Opens the listeners and serves them.

use std::{net::SocketAddr, os::fd::AsFd as _, path::Path, sync::Arc};

use dstack_api::UserFacing;
use dstack_attester::Attester;
use dstack_rpc::{Limits, ListenError, Listener, serve_with};
use tokio::{sync::watch, task::JoinSet};

use super::{
    application::{Application, ApplicationError},
    config::AgentConfig,
    evidence::EvidenceDesk,
    host, inside, outside,
    state::State,
};

/// Containers run under any user.
pub const SOCKET_MODE: u32 = 0o777;
/// Any context id.
const ANY_CID: u32 = u32::MAX;
/// Strangers and the host get fewer connections than containers do.
const OUTSIDE_CONNECTIONS: usize = 256;

/// Why the agent does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// Its state.
    #[error(transparent)]
    Application(#[from] ApplicationError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A directory for a socket.
    #[error("create the directory of {path}")]
    Directory {
        /// The socket.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl UserFacing for AgentError {
    fn code(&self) -> &'static str {
        match self {
            Self::Application(error) => error.code(),
            Self::Listen(error) => error.code(),
            Self::Directory { .. } => "agent/state",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Application(error) => error.fix(),
            Self::Listen(error) => error.fix(),
            Self::Directory { .. } => "start the VM again".to_owned(),
        }
    }
}

/// Addresses in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentAddresses {
    /// Of the public API; differs from the configured one where that has port 0.
    pub public: SocketAddr,
}

enum Audience {
    Inside,
    Outside,
    Host,
}

/// An agent whose listeners are open: connections wait until [`Agent::serve`].
pub struct Agent {
    state: Arc<State>,
    listeners: Vec<(Audience, Listener)>,
    addresses: AgentAddresses,
}

impl Agent {
    /// Loads the application and opens the listeners.
    ///
    /// Errors: the application's files, the TEE, or an address that cannot be used. A missing vsock only takes the host's API.
    pub async fn open(config: AgentConfig, attester: Arc<Attester>) -> Result<Self, AgentError> {
        let application = Arc::new(Application::load(&config.share, &attester)?);
        let evidence = Arc::new(EvidenceDesk::new(attester, application.sys_config_text.clone()));
        let mut listeners = Vec::new();
        if config.socket_on_stdin {
            let socket =
                std::io::stdin().as_fd().try_clone_to_owned().map_err(|source| ListenError::Io { address: "stdin".to_owned(), source })?;
            listeners.push((Audience::Inside, Listener::inherited(socket)?));
        } else {
            for path in &config.sockets {
                make_parent(path)?;
                listeners.push((Audience::Inside, Listener::unix(path, SOCKET_MODE).await?));
            }
        }
        let public = Listener::tcp(config.public_address).await?;
        let addresses = AgentAddresses { public: public.local_addr().unwrap_or(config.public_address) };
        listeners.push((Audience::Outside, public));
        if let Some(path) = &config.host_socket {
            listeners.push((Audience::Host, Listener::unix(path, 0o600).await?));
        }
        if config.host_port != 0 {
            match Listener::vsock(ANY_CID, config.host_port) {
                Ok(listener) => listeners.push((Audience::Host, listener)),
                Err(error) => tracing::error!(%error, "the host's API is not served"),
            }
        }
        Ok(Self { state: Arc::new(State::new(config, application, evidence)), listeners, addresses })
    }

    /// Addresses in use.
    #[must_use]
    pub fn addresses(&self) -> AgentAddresses {
        self.addresses
    }

    /// Serves until `shutdown` completes, then drains.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (audience, listener) in self.listeners {
            let state = Arc::clone(&self.state);
            let (router, limits) = match audience {
                Audience::Inside => (inside::router(state), Limits::default()),
                Audience::Outside => (outside::router(state), Limits { connections: OUTSIDE_CONNECTIONS, ..Limits::default() }),
                Audience::Host => (host::router(state), Limits { connections: OUTSIDE_CONNECTIONS, ..Limits::default() }),
            };
            let mut stopped = stopped.clone();
            let stopping = async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            tasks.spawn(serve_with(listener, router, stopping, limits));
        }
        shutdown.await;
        stop.send_replace(true);
        while tasks.join_next().await.is_some() {}
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

fn make_parent(path: &Path) -> Result<(), AgentError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|source| AgentError::Directory { path: path.display().to_string(), source })
}
