//! The network: DHCP on the virtio cards. It comes up beside the measurement; the key request waits for it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::UserFacing;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket};
use std::os::fd::AsRawFd as _;
use tokio::sync::watch;

use super::{
    children::{Children, ServiceSpec},
    layout::Layout,
};

/// How long DHCP may take; dhcpcd is started anew after each of [`ATTEMPTS`] equal parts.
pub const PATIENCE: Duration = Duration::from_secs(45);
const ATTEMPTS: u32 = 3;
/// `argv[0]` under which dhcpcd calls `dstack-init` back.
pub const HOOK_NAME: &str = "dhcp-event";

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A file or socket.
    #[error("set up the network: {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Nobody gave us an address.
    #[error("no DHCP server gave this VM an address within {patience:?}; dhcpcd: {log_tail}")]
    NoLease {
        /// How long was waited.
        patience: Duration,
        /// The end of the client's log.
        log_tail: String,
    },
}

impl UserFacing for NetworkError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "guest/network",
            Self::NoLease { .. } => "guest/no-dhcp-lease",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Io { .. } => "read the serial log; the image may be damaged".to_owned(),
            Self::NoLease { .. } => "give the VM a network with DHCP: networking mode user, or a bridge with a DHCP server".to_owned(),
        }
    }
}

/// Proof that the network is up. Only [`Networking::ready`] makes it.
#[derive(Debug, Clone)]
pub struct NetworkUp {
    _private: (),
}

/// The network while it comes up.
#[derive(Debug)]
pub struct Networking {
    lease: watch::Receiver<bool>,
    children: Children,
}

impl Networking {
    /// Brings up the loopback card and starts DHCP. `lease`: becomes true when the hook reports one.
    ///
    /// Errors: a file or socket.
    pub fn start(layout: &Layout, children: &Children, lease: watch::Receiver<bool>) -> Result<Self, NetworkError> {
        let failed = |operation| move |source| NetworkError::Io { operation, source };
        raise_loopback().map_err(failed("raise the loopback card"))?;
        let hook = layout.run().join("bin").join(HOOK_NAME);
        let program = std::env::current_exe().map_err(failed("find our program"))?;
        fs::create_dir_all(layout.run().join("bin")).map_err(failed("make the hook"))?;
        if !hook.exists() {
            symlink(program, &hook).map_err(failed("make the hook"))?;
        }
        let config = layout.run().join("dhcpcd.conf");
        fs::write(&config, dhcpcd_config(&hook)).map_err(failed("write dhcpcd.conf"))?;
        fs::create_dir_all(layout.root().join("var/lib/dhcpcd")).map_err(failed("make the lease directory"))?;
        children.start(ServiceSpec::new("dhcpcd", "/usr/sbin/dhcpcd", &["-B", "-4", "-f", &config.display().to_string()]));
        Ok(Self { lease, children: children.clone() })
    }

    /// Waits for an address.
    ///
    /// Errors: none within [`PATIENCE`].
    pub async fn ready(mut self) -> Result<NetworkUp, NetworkError> {
        for _ in 0..ATTEMPTS {
            let wait = self.lease.wait_for(|has_lease| *has_lease);
            if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE / ATTEMPTS, wait).await {
                return Ok(NetworkUp { _private: () });
            }
            let _ = self.children.restart("dhcpcd");
        }
        Err(NetworkError::NoLease { patience: PATIENCE, log_tail: self.children.log_tail("dhcpcd") })
    }
}

/// No random delay, no ARP probe, no made-up address, and no wait for udev, which we do not run: the host's DHCP server decides, or there is no network.
fn dhcpcd_config(hook: &Path) -> String {
    format!(
        "nodev\nallowinterfaces eth* enp* ens*\nipv4only\nnodelay\nnoarp\nnoipv4ll\nnohook resolv.conf\noption domain_name_servers, domain_name, interface_mtu\nrequire dhcp_server_identifier\nscript {}\n",
        hook.display()
    )
}

/// Handles one call of dhcpcd; the facts come in its environment. Returns whether there is a lease now.
///
/// Errors: `resolv.conf` cannot be written.
pub fn handle_dhcp_event(resolv_conf: &Path, variable: impl Fn(&str) -> Option<String>) -> io::Result<bool> {
    let reason = variable("reason").unwrap_or_default();
    if !matches!(reason.as_str(), "BOUND" | "RENEW" | "REBIND" | "REBOOT" | "STATIC" | "INFORM") {
        return Ok(false);
    }
    let mut text = String::new();
    if let Some(domain) =
        variable("new_domain_name").filter(|domain| domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)))
    {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in variable("new_domain_name_servers").unwrap_or_default().split_ascii_whitespace().take(3) {
        if server.parse::<std::net::IpAddr>().is_ok() {
            text.push_str(&format!("nameserver {server}\n"));
        }
    }
    let temporary: PathBuf = resolv_conf.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(temporary, resolv_conf)?;
    Ok(true)
}

/// Sets IFF_UP on `lo`, whose index is always 1, by one netlink message.
fn raise_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&1_i32.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    sendto(fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 256];
    let got = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer.get(16..20).filter(|_| got >= 20).and_then(|bytes| bytes.try_into().ok()).map_or(-1, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn handled(variables: &[(&str, &str)]) -> (bool, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let lookup = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let bound = handle_dhcp_event(&path, lookup).unwrap();
        (bound, fs::read_to_string(&path).unwrap_or_default())
    }

    #[test]
    fn a_lease_writes_resolv_conf() {
        let (bound, text) =
            handled(&[("reason", "BOUND"), ("new_domain_name_servers", "10.0.2.3 evil;rm 1.1.1.1"), ("new_domain_name", "lan")]);

        assert!(bound);
        assert_eq!(text, "search lan\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n");
    }

    #[test]
    fn other_events_change_nothing() {
        assert_eq!(handled(&[("reason", "CARRIER"), ("new_domain_name_servers", "1.1.1.1")]), (false, String::new()));
    }

    #[test]
    fn a_domain_that_is_none_is_left_out() {
        assert_eq!(handled(&[("reason", "BOUND"), ("new_domain_name", "x\nnameserver 6.6.6.6")]).1, "");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lease_there_is_no_network() {
        let (_sender, lease) = watch::channel(false);

        let error = Networking { lease, children: Children::new(std::env::temp_dir()).0 }.ready().await.unwrap_err();

        assert_eq!(error.code(), "guest/no-dhcp-lease");
    }
}
