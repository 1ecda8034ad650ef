//! What the address of an app says.
//!
//! Behind a gateway a host name is `<app id>[-<port>][s|g].<domain>`: `s` passes TLS through to the app, `g` speaks gRPC, and without
//! either the gateway ends TLS itself. The gateway shows its own papers at `gateway.<domain>`.

/// Length of an app id in hex.
const APP_ID_DIGITS: usize = 40;

/// An address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `https://host[:port]`, no path.
    pub origin: String,
    /// Host name or IP address, without port.
    pub host: String,
    /// `:port` as written, or empty.
    port: String,
}

impl Address {
    /// Reads a URL; path and query are dropped.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty())?;
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https") || authority.contains('@') {
            return None;
        }
        // The colons of an IPv6 address stand inside brackets.
        let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
        let colon = authority.get(host_end..)?.find(':').map(|at| at + host_end);
        let (host, port) = authority.split_at_checked(colon.unwrap_or(authority.len()))?;
        Some(Self { origin: format!("{scheme}://{authority}"), host: host.to_ascii_lowercase(), port: port.to_owned() })
    }

    /// The domain of the gateway, if the host name has the form of an app behind one.
    fn behind_gateway(&self) -> Option<(&str, &str)> {
        let (label, domain) = self.host.split_once('.')?;
        let (app, rest) = label.split_at_checked(APP_ID_DIGITS)?;
        let is_form =
            app.bytes().all(|byte| byte.is_ascii_hexdigit()) && (rest.is_empty() || rest.starts_with('-') || matches!(rest, "s" | "g"));
        (is_form && domain.contains('.')).then_some((app, domain))
    }

    /// The guest agent of the app, through its gateway.
    pub(super) fn agent_behind_gateway(&self) -> Option<String> {
        let (app, domain) = self.behind_gateway()?;
        Some(format!("https://{app}-8090.{domain}{}", self.port))
    }

    /// The gateway's own page.
    pub(super) fn gateway(&self) -> Option<String> {
        let (_, domain) = self.behind_gateway()?;
        Some(format!("https://gateway.{domain}{}", self.port))
    }

    /// On this machine.
    pub(super) fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn app_behind_a_gateway_leads_to_its_agent_and_to_the_gateway() {
        let app = "ab".repeat(20);
        for label in [app.clone(), format!("{app}-8080"), format!("{app}-443s"), format!("{app}s")] {
            let address = Address::parse(&format!("https://{label}.apps.example.com:8443/page?x=1")).unwrap();

            assert_eq!(address.agent_behind_gateway().unwrap(), format!("https://{app}-8090.apps.example.com:8443"), "{label}");
            assert_eq!(address.gateway().unwrap(), "https://gateway.apps.example.com:8443");
        }
    }

    #[test]
    fn other_hosts_are_behind_none() {
        for url in ["https://example.com", "https://abcdef.apps.example.com", "http://127.0.0.1:80/", "https://[::1]:443"] {
            assert_eq!(Address::parse(url).unwrap().gateway(), None, "{url}");
        }
        assert!(Address::parse("https://[::1]:443").unwrap().is_loopback());
        assert_eq!(Address::parse("https://Example.com/a").unwrap().origin, "https://Example.com");
    }

    #[test]
    fn no_credentials_and_no_other_schemes() {
        for url in ["ftp://x", "https://", "https://user@host", "host"] {
            assert_eq!(Address::parse(url), None, "{url}");
        }
    }
}
