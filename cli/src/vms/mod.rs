//! VMs of a VMM: find, show, follow, stop, start, remove.

mod boot;
mod detail;
mod lifecycle;
mod list;
mod logs;
mod timeline;

use dstack_api::vmm::{StatusRequest, VmInfo, VmmClient};
use dstack_rpc::{Client, Endpoint};

pub(crate) use boot::wait_for_boot;
pub(crate) use detail::info;
pub(crate) use lifecycle::{rm, start, stop};
pub(crate) use list::ps;
pub(crate) use logs::logs;
pub(crate) use timeline::Timeline;

use crate::{
    args::VmmArgs,
    failure::{Failure, Outcome},
    home::Home,
    stack::LocalStack,
};

/// A VMM with what is known about it.
#[derive(Debug, Clone)]
pub(crate) struct Vmm {
    /// Its API.
    pub api: VmmClient<Client>,
    /// Its address.
    pub url: String,
    /// The local stack it belongs to, if it does.
    pub local: Option<LocalStack>,
}

impl Vmm {
    /// The VMM that the options name, else that of the local stack.
    ///
    /// Errors: there is neither, or the token cannot be read.
    pub(crate) fn connect(args: &VmmArgs) -> Outcome<Self> {
        let home = Home::from_env()?;
        let Some(url) = &args.vmm else {
            let local = LocalStack::must_find(&home)?;
            return Ok(Self { api: VmmClient(local.vmm()?), url: local.vmm_url(), local: Some(local) });
        };
        let endpoint = Endpoint::parse_service(url)?;
        let mut client = Client::new(endpoint).with_tls(dstack_rpc::system_tls());
        if let Some(path) = &args.token_file {
            let token = std::fs::read_to_string(path).map_err(|error| Failure::io("reading", path, &error))?;
            client = client.with_bearer(token.lines().next().unwrap_or_default());
        }
        Ok(Self { api: VmmClient(client), url: url.clone(), local: None })
    }

    /// Every VM, with its configuration.
    ///
    /// Errors: the VMM's.
    pub(crate) async fn vms(&self) -> Outcome<Vec<VmInfo>> {
        let status = self.api.status(&StatusRequest::default()).await;
        Ok(status.map_err(|error| self.explain(error))?.vms)
    }

    /// The VM that `name` means: its name, VM id or app id, or the first digits of an id.
    ///
    /// Errors: none, or several.
    pub(crate) async fn find(&self, name: &str) -> Outcome<VmInfo> {
        resolve(self.vms().await?, name)
    }

    /// A VM as it is now.
    ///
    /// Errors: it is gone.
    pub(crate) async fn get(&self, id: &str) -> Outcome<VmInfo> {
        let answer = self.api.get_info(&dstack_api::vmm::Id { id: id.to_owned() }).await.map_err(|error| self.explain(error))?;
        answer.info.ok_or_else(|| Failure::new("vm/gone", format!("VM {id} does not exist any more"), "list the VMs with `dstack ps`"))
    }

    /// An error of the VMM's; for the local stack an unreachable VMM has a better fix.
    #[must_use]
    pub(crate) fn explain(&self, error: dstack_api::RpcError) -> Failure {
        let mut failure = Failure::rpc(error);
        if self.local.is_some() && failure.report.code == dstack_api::RpcError::UNREACHABLE {
            "stack/down".clone_into(&mut failure.report.code);
            "start the local stack with `dstack up`".clone_into(&mut failure.report.fix);
        }
        failure
    }
}

fn resolve(vms: Vec<VmInfo>, name: &str) -> Outcome<VmInfo> {
    let exact: Vec<&VmInfo> = vms.iter().filter(|vm| vm.name == name || vm.id == name).collect();
    let candidates = if exact.is_empty() {
        let is_prefix = |id: &str| name.len() >= 3 && id.starts_with(name);
        vms.iter().filter(|vm| is_prefix(&vm.id) || is_prefix(&vm.app_id)).collect()
    } else {
        exact
    };
    match candidates.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).take(10).collect();
            let known = if names.is_empty() { "there are none".to_owned() } else { format!("there are {}", names.join(", ")) };
            Err(Failure::new("vm/not-found", format!("no VM is called `{name}`; {known}"), "list the VMs with `dstack ps`"))
        }
        several => {
            let ids: Vec<String> = several.iter().map(|vm| format!("{} ({})", short(&vm.id), vm.name)).collect();
            Err(Failure::usage("vm/ambiguous", format!("`{name}` means several VMs: {}", ids.join(", ")), "give more digits of the VM id"))
        }
    }
}

/// The first digits of an id.
#[must_use]
pub(crate) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Addresses of a VM's published ports on this machine, for browsers: TCP only, the agent's port left out.
#[must_use]
pub(crate) fn urls(vm: &VmInfo) -> Vec<String> {
    let ports = vm.configuration.iter().flat_map(|configuration| &configuration.ports);
    let apps = ports.filter(|port| port.protocol != "udp" && port.vm_port != u32::from(crate::ports::AGENT_PORT));
    apps.map(|port| format!("http://{}:{}/", host(&port.host_address), port.host_port)).collect()
}

/// Address of the guest agent on this machine.
#[must_use]
pub(crate) fn agent_url(vm: &VmInfo) -> Option<String> {
    let ports = vm.configuration.iter().flat_map(|configuration| &configuration.ports);
    let agent = ports.into_iter().find(|port| port.protocol != "udp" && port.vm_port == u32::from(crate::ports::AGENT_PORT))?;
    Some(format!("http://{}:{}", host(&agent.host_address), agent.host_port))
}

fn host(address: &str) -> &str {
    match address {
        "" | "0.0.0.0" => "127.0.0.1",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn vm(id: &str, name: &str, app_id: &str) -> VmInfo {
        VmInfo { id: id.into(), name: name.into(), app_id: app_id.into(), ..VmInfo::default() }
    }

    fn vms() -> Vec<VmInfo> {
        vec![vm("aaaa1111", "web", "0101"), vm("aaaa2222", "db", "0202"), vm("bbbb3333", "aaaa1", "0303")]
    }

    #[test]
    fn finds_by_name_id_prefix_and_app_id() {
        for (name, id) in [
            ("web", "aaaa1111"),
            ("aaaa2222", "aaaa2222"),
            ("aaaa2", "aaaa2222"),
            ("0202", "aaaa2222"),
            ("bbb", "bbbb3333"),
            ("aaaa1", "bbbb3333"),
        ] {
            assert_eq!(resolve(vms(), name).unwrap().id, id, "{name}");
        }
    }

    #[test]
    fn several_and_none_are_named() {
        let several = resolve(vms(), "aaaa").unwrap_err();
        let none = resolve(vms(), "aa").unwrap_err();

        assert_eq!(several.report.cause, "`aaaa` means several VMs: aaaa1111 (web), aaaa2222 (db)");
        assert_eq!(none.report.cause, "no VM is called `aa`; there are web, db, aaaa1");
    }
}
