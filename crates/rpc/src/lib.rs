//! Serve and call the api over TCP, Unix socket, vsock and TLS.
//!
//! Server: [`mount`] turns a [`dstack_api::Dispatch`] into an [`axum::Router`], [`serve`] runs a router on a
//! [`Listener`]; who is calling arrives as [`Caller`]. Client: [`Client`] speaks to an [`Endpoint`] and is a
//! [`dstack_api::Transport`].
//!
//! Every peer is untrusted: bodies are limited to [`BODY_LIMIT`], headers, bodies and handshakes have deadlines,
//! connections are capped in all and by source, unfinished handshakes give way, and a handler that panics costs one answer.

mod admission;
mod caller;
mod client;
mod connect;
mod endpoint;
mod listener;
mod mount;
mod serve;
mod supervisor_client;
mod system_tls;

pub use caller::{Caller, Peer};
pub use client::{Answer, Client, ClientError, Stream};
pub use endpoint::{Endpoint, EndpointError};
pub use listener::{ListenError, Listener, bind_unix};
pub use mount::{BODY_LIMIT, GetPolicy, error_response, mount};
pub use serve::{Limits, serve, serve_with};
pub use supervisor_client::{SupervisorClient, SupervisorError};
pub use system_tls::system_tls;
