//! Interfaces, addresses, gateways and name servers.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use dstack_api::guest_api::{Gateway, Interface, IpAddress, NetworkInformation};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use super::system::text;

const MAX_ADDRESSES: usize = 256;
/// Interfaces worth showing: the network cards and the gateway's tunnel, not those of containers.
const SHOWN: [&str; 3] = ["dstack-wg0", "enp", "eth"];

/// Reads everything. Blocks shortly.
pub(super) fn read() -> NetworkInformation {
    let dns_servers = text("/etc/resolv.conf")
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next().map(str::to_owned))
        .take(MAX_ADDRESSES)
        .collect();
    NetworkInformation { dns_servers, gateways: gateways(&text("/proc/net/route")), interfaces: interfaces(), wg_info: String::new() }
}

/// Gateways of default routes in the kernel's IPv4 table, which holds little-endian hex.
fn gateways(table: &str) -> Vec<Gateway> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (destination, gateway) = (words.next()?, words.next()?);
            let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| destination == "00000000" && *gateway != 0)?;
            Some(Gateway { address: Ipv4Addr::from(gateway.swap_bytes()).to_string() })
        })
        .take(MAX_ADDRESSES)
        .collect()
}

fn interfaces() -> Vec<Interface> {
    let mut addresses: BTreeMap<String, Vec<IpAddress>> = BTreeMap::new();
    for entry in getifaddrs().into_iter().flatten().take(MAX_ADDRESSES) {
        if SHOWN.iter().any(|shown| entry.interface_name.starts_with(shown)) {
            let found = entry.address.zip(entry.netmask).and_then(|(address, mask)| ip_address(&address, &mask));
            addresses.entry(entry.interface_name).or_default().extend(found);
        }
    }
    addresses.into_iter().map(|(name, addresses)| interface(name, addresses)).collect()
}

fn interface(name: String, addresses: Vec<IpAddress>) -> Interface {
    let statistics = Path::new("/sys/class/net").join(&name).join("statistics");
    let counter = |what: &str| text(statistics.join(what)).trim().parse().unwrap_or(0);
    Interface {
        addresses,
        rx_bytes: counter("rx_bytes"),
        tx_bytes: counter("tx_bytes"),
        rx_errors: counter("rx_errors"),
        tx_errors: counter("tx_errors"),
        name,
    }
}

fn ip_address(address: &SockaddrStorage, mask: &SockaddrStorage) -> Option<IpAddress> {
    if let (Some(address), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
        return Some(IpAddress { address: address.ip().to_string(), prefix: u32::from(mask.ip()).count_ones() });
    }
    let (address, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
    Some(IpAddress { address: address.ip().to_string(), prefix: u128::from(mask.ip()).count_ones() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_route_of_the_kernel_table_is_found() {
        let table = "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0202000A\t0003\neth0\t0002000A\t00000000\t0001\n";

        let found = gateways(table);

        assert_eq!(found.len(), 1);
        assert_eq!(found.first().map(|gateway| gateway.address.as_str()), Some("10.0.2.2"));
        assert!(gateways("nonsense\nmore nonsense zz").is_empty());
    }
}
