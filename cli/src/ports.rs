//! Which ports of the VM are reachable on this machine.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    str::FromStr,
};

use dstack_api::vmm::PortMapping;
pub(crate) use dstack_api::wire::AGENT_PORT;

use crate::{
    compose::{ComposePort, Protocol},
    failure::{Failure, Outcome},
};

/// A wish to publish a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortSpec {
    /// Transport.
    pub protocol: Protocol,
    /// Address of this machine.
    pub address: IpAddr,
    /// Port of this machine; `None` picks a free one.
    pub host: Option<u16>,
    /// Port of the guest.
    pub guest: u16,
}

impl FromStr for PortSpec {
    type Err = Failure;

    /// `GUEST`, `HOST:GUEST`, `PROTO:HOST:GUEST`, `PROTO:ADDRESS:HOST:GUEST`; HOST may be `auto` or `0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || {
            let fix = "write GUEST, HOST:GUEST, PROTO:HOST:GUEST or PROTO:ADDRESS:HOST:GUEST, such as 8080:80 or tcp:127.0.0.1:auto:80";
            Failure::usage("cli/bad-port", format!("`{text}` is not a port mapping"), fix)
        };
        let number = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(fail);
        let host = |text: &str| if matches!(text, "auto" | "0") { Ok(None) } else { number(text).map(Some) };
        let (front, guest) = text.rsplit_once(':').unwrap_or(("", text));
        let guest = number(guest)?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        if text.starts_with(':') {
            return Err(fail());
        }
        let parts: Vec<&str> = if front.is_empty() { Vec::new() } else { front.splitn(3, ':').collect() };
        let protocol = |text: &str| match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(fail()),
        };
        match parts.as_slice() {
            [] => Ok(Self { protocol: Protocol::Tcp, address: loopback, host: Some(guest), guest }),
            [port] => Ok(Self { protocol: Protocol::Tcp, address: loopback, host: host(port)?, guest }),
            [transport, port] => Ok(Self { protocol: protocol(transport)?, address: loopback, host: host(port)?, guest }),
            [transport, address, port] => {
                Ok(Self { protocol: protocol(transport)?, address: address.parse().map_err(|_| fail())?, host: host(port)?, guest })
            }
            _ => Err(fail()),
        }
    }
}

/// Joins what the compose file publishes, what `-p` says, and the guest agent's port.
///
/// A `-p` for a guest port replaces the compose file's mapping of it. The agent goes to a free port unless `-p` says otherwise.
#[must_use]
pub(crate) fn plan(compose: &[ComposePort], wishes: &[PortSpec]) -> Vec<PortSpec> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let is_wished = |protocol, guest| wishes.iter().any(|wish| wish.protocol == protocol && wish.guest == guest);
    let from_compose = compose.iter().filter(|port| !is_wished(port.protocol, port.published));
    let mut specs: Vec<PortSpec> =
        from_compose.map(|port| PortSpec { protocol: port.protocol, address, host: Some(port.published), guest: port.published }).collect();
    specs.extend_from_slice(wishes);
    if !specs.iter().any(|spec| spec.protocol == Protocol::Tcp && spec.guest == AGENT_PORT) {
        specs.push(PortSpec { protocol: Protocol::Tcp, address, host: None, guest: AGENT_PORT });
    }
    specs
}

/// Checks that ports are free on this machine and picks those left open.
///
/// Errors: a port in use, or one that is asked for twice.
pub(crate) fn resolve(specs: &[PortSpec]) -> Outcome<Vec<PortMapping>> {
    // Sockets stay open until all ports are picked, so that none is picked twice.
    let mut held = Vec::new();
    let mut mappings = Vec::new();
    for spec in specs {
        let address = SocketAddr::new(spec.address, spec.host.unwrap_or(0));
        let bound = match spec.protocol {
            Protocol::Tcp => TcpListener::bind(address).and_then(|socket| {
                let port = socket.local_addr()?.port();
                Ok((port, Socket::Tcp(socket)))
            }),
            Protocol::Udp => UdpSocket::bind(address).and_then(|socket| {
                let port = socket.local_addr()?.port();
                Ok((port, Socket::Udp(socket)))
            }),
        };
        let (port, socket) = bound.map_err(|error| cannot_bind(spec, address, &error))?;
        held.push(socket);
        mappings.push(PortMapping {
            protocol: spec.protocol.to_string(),
            host_port: u32::from(port),
            vm_port: u32::from(spec.guest),
            host_address: spec.address.to_string(),
        });
    }
    Ok(mappings)
}

/// Kept open, never used.
enum Socket {
    Tcp(#[allow(dead_code, reason = "held for its port")] TcpListener),
    Udp(#[allow(dead_code, reason = "held for its port")] UdpSocket),
}

fn cannot_bind(spec: &PortSpec, address: SocketAddr, error: &std::io::Error) -> Failure {
    let guest = spec.guest;
    let fix = format!("free it, or publish the app's port {guest} elsewhere with -p auto:{guest}");
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::new("vmm/port-in-use", format!("{} port {} is in use on this machine", spec.protocol, address.port()), fix)
        }
        _ => Failure::new("deploy/port-not-usable", format!("{} {address} cannot be opened: {error}", spec.protocol), fix),
    }
}

/// `127.0.0.1:8080 → 80`, TCP left out.
#[must_use]
pub(crate) fn describe(mapping: &PortMapping) -> String {
    let protocol = if mapping.protocol == "udp" { "/udp" } else { "" };
    let address = if mapping.host_address.is_empty() { "127.0.0.1" } else { &mapping.host_address };
    format!("{address}:{} → {}{protocol}", mapping.host_port, mapping.vm_port)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn reads_every_form() {
        let localhost: IpAddr = "127.0.0.1".parse().unwrap();
        let tcp = |host, guest| PortSpec { protocol: Protocol::Tcp, address: localhost, host, guest };
        assert_eq!(spec("80"), tcp(Some(80), 80));
        assert_eq!(spec("8080:80"), tcp(Some(8080), 80));
        assert_eq!(spec("auto:80"), tcp(None, 80));
        assert_eq!(spec("tcp:0:80"), tcp(None, 80));
        assert_eq!(
            spec("udp:0.0.0.0:53:53"),
            PortSpec { protocol: Protocol::Udp, address: "0.0.0.0".parse().unwrap(), host: Some(53), guest: 53 }
        );
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "0", "x", "80:", ":80", "a:80", "sctp:80:80", "tcp:nowhere:80:80", "tcp:1:2:3:4", "70000", "80:0"] {
            assert!(text.parse::<PortSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn wishes_replace_the_compose_files_ports_and_the_agent_is_added() {
        let compose = [8080, 9000].map(|published| ComposePort { protocol: Protocol::Tcp, published });

        let plan = plan(&compose, &[spec("auto:8080")]);

        let shown: Vec<_> = plan.iter().map(|spec| (spec.host, spec.guest)).collect();
        assert_eq!(shown, [(Some(9000), 9000), (None, 8080), (None, AGENT_PORT)]);
    }

    #[test]
    fn used_port_is_refused_with_a_way_out() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();

        let failure = resolve(&[spec(&format!("{port}:80"))]).unwrap_err();

        assert_eq!(failure.report.code, "vmm/port-in-use");
        assert!(failure.report.fix.ends_with("-p auto:80"), "{}", failure.report.fix);
    }

    #[test]
    fn free_ports_differ() {
        let mappings = resolve(&[spec("auto:80"), spec("auto:81")]).unwrap();

        assert_ne!(mappings[0].host_port, mappings[1].host_port);
        assert_eq!(describe(&PortMapping { host_port: 1, ..mappings[0].clone() }), "127.0.0.1:1 → 80");
    }
}
