//! `/guest/<Method>`: calls into the guest for clients of the VMM.

use std::sync::Arc;

use dstack_api::{
    RpcError,
    guest_api::{Empty, GuestApiClient, GuestInfo, Id, ListContainersResponse, NetworkInformation, ProxiedGuestApiRpc, SystemInfo},
};
use dstack_rpc::{Caller, Client};

use crate::{Vmm, VmmError};

/// Methods that change nothing.
pub(crate) const READ_ONLY: &[&str] = &["Info", "SysInfo", "NetworkInfo", "ListContainers"];

/// The relay.
pub(crate) struct GuestRelay(pub(crate) Arc<Vmm>);

impl GuestRelay {
    async fn guest(&self, id: &str) -> Result<GuestApiClient<Client>, VmmError> {
        let row = self.0.row(id)?;
        if !self.0.is_running(&row.id).await? {
            return Err(VmmError::NotRunning(row.id));
        }
        Ok(GuestApiClient(self.0.guest(&row)?))
    }
}

/// What a guest says about its own failure is not to be mistaken for ours.
fn unreachable(id: &str, error: &RpcError) -> RpcError {
    VmmError::Guest { id: id.to_owned(), reason: dstack_service::text::clean(&error.message, 300) }.into()
}

impl ProxiedGuestApiRpc for GuestRelay {
    type Caller = Caller;

    async fn info(&self, _: Caller, Id { id }: Id) -> Result<GuestInfo, RpcError> {
        self.guest(&id).await?.info(&Empty {}).await.map_err(|error| unreachable(&id, &error))
    }

    async fn sys_info(&self, _: Caller, Id { id }: Id) -> Result<SystemInfo, RpcError> {
        self.guest(&id).await?.sys_info(&Empty {}).await.map_err(|error| unreachable(&id, &error))
    }

    async fn network_info(&self, _: Caller, Id { id }: Id) -> Result<NetworkInformation, RpcError> {
        self.guest(&id).await?.network_info(&Empty {}).await.map_err(|error| unreachable(&id, &error))
    }

    async fn list_containers(&self, _: Caller, Id { id }: Id) -> Result<ListContainersResponse, RpcError> {
        self.guest(&id).await?.list_containers(&Empty {}).await.map_err(|error| unreachable(&id, &error))
    }

    async fn shutdown(&self, _: Caller, Id { id }: Id) -> Result<Empty, RpcError> {
        self.guest(&id).await?.shutdown(&Empty {}).await.map_err(|error| unreachable(&id, &error))
    }
}
