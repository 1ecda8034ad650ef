//! The admin listener: plain HTTP on an address of the operator's, every call with a token.

mod calls;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, middleware::from_fn_with_state, routing::get};
use dstack_api::kms::AdminServer;
use dstack_rpc::{GetPolicy, Listener};
use tokio::sync::watch;

use crate::{
    access::{self, Gate},
    api::Kms,
    config::Settings,
    server::StartError,
};
use calls::AdminCalls;

/// Bound, not serving yet.
pub(crate) struct AdminListener {
    listener: Listener,
    gate: Arc<Gate>,
}

/// Binds the address, if there is one.
pub(crate) async fn open(settings: &Settings) -> Result<Option<AdminListener>, StartError> {
    let table = &settings.file.admin;
    let Some(address) = table.listen else { return Ok(None) };
    let gate = Arc::new(Gate::open(table.token_file.as_deref())?.with_users(table.htpasswd_file.as_deref())?);
    Ok(Some(AdminListener { listener: Listener::tcp(address).await?, gate }))
}

impl AdminListener {
    /// Address in use.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    pub(crate) async fn serve(self, kms: &Arc<Kms>, mut stopped: watch::Receiver<bool>) {
        let calls = AdminServer(Arc::new(AdminCalls::new(Arc::clone(kms))));
        let router = dstack_rpc::mount(dstack_api::wire::PRPC_BASE, calls, GetPolicy::ReadOnly(&["GetEpochs"]))
            .layer(from_fn_with_state(self.gate, access::require_token))
            .merge(Router::new().route("/health", get(|| async { "OK" })));
        let stop = async move {
            let _sender_gone = stopped.wait_for(|stop| *stop).await;
        };
        dstack_rpc::serve(self.listener, router, stop).await;
    }
}
