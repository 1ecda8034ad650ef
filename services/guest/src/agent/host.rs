//! The host's API: `GuestApi` below `/api` on vsock port 8000. The host is not trusted; nothing here is secret.

use std::sync::Arc;

use axum::Router;
use dstack_api::{
    RpcError,
    guest_api::{Empty, GuestApiRpc, GuestApiServer, GuestInfo, ListContainersResponse, NetworkInformation, SystemInfo},
    wire,
};
use dstack_rpc::{Caller, GetPolicy, mount};

use super::{containers, evidence::Asker, network, state::State, system};
use crate::boot::control::{self, Order};

struct Host(Arc<State>);

pub(crate) fn router(state: Arc<State>) -> Router {
    let get = GetPolicy::ReadOnly(&["Info", "SysInfo", "NetworkInfo", "ListContainers"]);
    mount(wire::VSOCK_BASE, GuestApiServer(Arc::new(Host(state))), get)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RpcError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RpcError::internal("the call broke off"))
}

impl GuestApiRpc for Host {
    type Caller = Caller;

    async fn info(&self, _caller: Caller, _request: Empty) -> Result<GuestInfo, RpcError> {
        let info = self.0.info(Asker::Outside).await?;
        Ok(GuestInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            app_id: info.app_id,
            instance_id: info.instance_id,
            app_cert: info.app_cert,
            tcb_info: info.tcb_info,
            device_id: info.device_id,
        })
    }

    async fn sys_info(&self, _caller: Caller, _request: Empty) -> Result<SystemInfo, RpcError> {
        let os_release = self.0.config.os_release.clone();
        blocking(move || system::read(&os_release)).await
    }

    async fn network_info(&self, _caller: Caller, _request: Empty) -> Result<NetworkInformation, RpcError> {
        blocking(network::read).await
    }

    async fn list_containers(&self, _caller: Caller, _request: Empty) -> Result<ListContainersResponse, RpcError> {
        let socket = self.0.config.docker_socket.clone();
        let containers = blocking(move || containers::list(&socket)).await??;
        Ok(ListContainersResponse { containers })
    }

    async fn shutdown(&self, caller: Caller, _request: Empty) -> Result<Empty, RpcError> {
        tracing::info!(peer = ?caller.peer, "the host asks for a shutdown");
        let socket = self.0.config.control_socket.clone();
        let outcome = blocking(move || {
            // Telling the host is a courtesy; it asked.
            let _ = control::send(
                &socket,
                &Order::Notify { event: wire::guest_event::SHUTDOWN_PROGRESS.to_owned(), payload: "powering off".to_owned() },
            );
            control::send(&socket, &Order::PowerOff)
        });
        let failed = |error: std::io::Error| {
            RpcError::new("agent/shutdown", format!("dstack-init takes no order: {error}"), "end the VM from outside")
        };
        outcome.await?.map_err(failed)?;
        Ok(Empty {})
    }
}
