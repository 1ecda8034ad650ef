//! `ports:` of a service.

use std::fmt;

use serde_yaml_ng::Value;

use super::interpolate;
use crate::failure::{Failure, Outcome};

/// Longest port range.
const MAX_RANGE: u32 = 256;

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port that a service publishes on the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ComposePort {
    /// Transport.
    pub protocol: Protocol,
    /// Port of the guest: what compose calls the host's port.
    pub published: u16,
}

/// Reads one entry, short or long form. Entries that publish nothing fixed give nothing.
///
/// Errors: an entry that cannot be read.
pub(super) fn read(service: &str, entry: &Value, lookup: &dyn Fn(&str) -> Option<String>) -> Outcome<Vec<ComposePort>> {
    let fail = |entry: &str| {
        let fix = "write it as \"HOST:CONTAINER\", such as \"8080:80\"";
        Failure::new("compose/bad-port", format!("service `{service}` publishes `{entry}`, which is not a port"), fix)
    };
    match entry {
        // Without a host port the engine picks one that nobody knows beforehand.
        Value::Number(_) => Ok(Vec::new()),
        Value::String(text) => {
            let text = interpolate(text, lookup);
            read_short(&text).ok_or_else(|| fail(&text))
        }
        long => {
            let text = |key: &str| match long.get(key) {
                Some(Value::String(text)) => Some(interpolate(text, lookup)),
                Some(Value::Number(number)) => Some(number.to_string()),
                _ => None,
            };
            let Some(published) = text("published").filter(|published| !published.is_empty()) else { return Ok(Vec::new()) };
            let protocol = text("protocol").unwrap_or_default();
            let host_ip = text("host_ip").unwrap_or_default();
            let address = if host_ip.is_empty() { String::new() } else { format!("{host_ip}:") };
            let short = format!(
                "{address}{published}:{}/{}",
                text("target").unwrap_or_default(),
                if protocol.is_empty() { "tcp" } else { &protocol }
            );
            read_short(&short).ok_or_else(|| fail(&short))
        }
    }
}

/// `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`; HOST and CONTAINER may be ranges.
fn read_short(text: &str) -> Option<Vec<ComposePort>> {
    let (ports, protocol) = text.rsplit_once('/').map_or((text, "tcp"), |(ports, protocol)| (ports, protocol));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let Some((front, container)) = ports.rsplit_once(':') else {
        return range(ports).map(|_| Vec::new());
    };
    let container = range(container)?;
    let (address, host) = front.rsplit_once(':').unwrap_or(("", front));
    if is_loopback(address) {
        // Reachable inside the guest only, as the file's author wants it.
        return Some(Vec::new());
    }
    if host.is_empty() {
        return Some(Vec::new());
    }
    let host = range(host)?;
    if host.len() != container.len() && container.len() != 1 {
        return None;
    }
    Some(host.into_iter().map(|published| ComposePort { protocol, published }).collect())
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address == "localhost" || address == "[::1]" || address == "::1"
}

fn range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let length = u32::from(last).checked_sub(u32::from(first))?;
    (first > 0 && length < MAX_RANGE).then(|| (first..=last).collect())
}
