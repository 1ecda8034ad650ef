//! Addresses of services.

use std::{fmt, path::PathBuf, str::FromStr};

use dstack_api::{UserFacing, wire::PRPC_BASE};

/// Where a service listens, with the base path of its calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) target: Target,
    /// Leading slash, no trailing one; empty for the root.
    pub(crate) base: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp {
        host: String,
        port: u16,
        tls: bool,
    },
    Unix(PathBuf),
    Vsock {
        cid: u32,
        port: u32,
    },
    /// Host side of vhost-device-vsock: a Unix socket that asks for the guest's port first.
    VsockUds {
        path: PathBuf,
        port: u32,
    },
}

/// An address that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not an endpoint: {cause}")]
pub struct EndpointError {
    address: String,
    cause: String,
}

impl UserFacing for EndpointError {
    fn code(&self) -> &'static str {
        "rpc/bad-endpoint"
    }

    fn fix(&self) -> String {
        "write http://host:port/base, https://host:port/base, unix:/path[:/base], vsock://cid:port/base or vsock-uds:/path:port/base"
            .to_owned()
    }
}

impl Endpoint {
    /// Reads `http://…`, `https://…`, `unix:/path[:/base]`, `vsock://cid:port/base`, `vsock-uds:/path:port/base`.
    ///
    /// Errors: anything else, credentials or a query in the address.
    pub fn parse(address: &str) -> Result<Self, EndpointError> {
        let fail = |cause: &str| EndpointError { address: address.to_owned(), cause: cause.to_owned() };
        let Some((scheme, rest)) = address.split_once(':') else { return Err(fail("it has no scheme")) };
        match scheme {
            "http" | "https" => parse_http(address, scheme == "https").map_err(|cause| fail(&cause)),
            "unix" => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                let (path, base) = rest.split_once(":/").map_or((rest, String::new()), |(path, base)| (path, format!("/{base}")));
                if !path.starts_with('/') {
                    return Err(fail("the path is not absolute"));
                }
                Ok(Self::new(Target::Unix(path.into()), &base))
            }
            "vsock" => {
                let rest = rest.strip_prefix("//").ok_or_else(|| fail("expected vsock://cid:port"))?;
                let (authority, base) = split_base(rest);
                let (cid, port) = authority.split_once(':').ok_or_else(|| fail("expected vsock://cid:port"))?;
                let cid = cid.parse().map_err(|_| fail("the CID is not a number"))?;
                let port = port.parse().map_err(|_| fail("the port is not a number"))?;
                Ok(Self::new(Target::Vsock { cid, port }, &base))
            }
            "vsock-uds" => {
                let (path, rest) = rest.rsplit_once(':').ok_or_else(|| fail("expected vsock-uds:/path:port"))?;
                let (port, base) = split_base(rest);
                let port = port.parse().map_err(|_| fail("the port is not a number"))?;
                if !path.starts_with('/') {
                    return Err(fail("the path is not absolute"));
                }
                Ok(Self::new(Target::VsockUds { path: path.into(), port }, &base))
            }
            _ => Err(fail("the scheme is unknown")),
        }
    }

    /// Reads the address of a service; one without a base path means where services usually answer.
    ///
    /// Errors: as [`Self::parse`].
    pub fn parse_service(address: &str) -> Result<Self, EndpointError> {
        let endpoint = Self::parse(address)?;
        Ok(if endpoint.base.is_empty() { endpoint.with_base(PRPC_BASE) } else { endpoint })
    }

    /// Base path: leading slash and no trailing one, or empty.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same service with another base path.
    #[must_use]
    pub fn with_base(&self, base: &str) -> Self {
        Self::new(self.target.clone(), base)
    }

    fn new(target: Target, base: &str) -> Self {
        Self { target, base: base.trim_end_matches('/').to_owned() }
    }
}

fn split_base(rest: &str) -> (&str, String) {
    rest.split_once('/').map_or((rest, String::new()), |(authority, base)| (authority, format!("/{base}")))
}

fn parse_http(address: &str, tls: bool) -> Result<Endpoint, String> {
    let url = url::Url::parse(address).map_err(|error| error.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into an address".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it has a query or fragment".to_owned());
    }
    let host = url.host_str().ok_or("it has no host")?.to_owned();
    let port = url.port_or_known_default().ok_or("it has no port")?;
    Ok(Endpoint::new(Target::Tcp { host, port, tls }, url.path()))
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tcp { host, port, tls } => write!(f, "{}://{host}:{port}", if *tls { "https" } else { "http" })?,
            Target::Unix(path) => {
                write!(f, "unix:{}", path.display())?;
                if !self.base.is_empty() {
                    write!(f, ":")?;
                }
            }
            Target::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}")?,
            Target::VsockUds { path, port } => write!(f, "vsock-uds:{}:{port}", path.display())?,
        }
        write!(f, "{}", self.base)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_every_kind() {
        for text in [
            "http://127.0.0.1:9080/prpc",
            "https://kms.example:443/prpc",
            "http://[::1]:80",
            "unix:/run/a.sock",
            "unix:/run/a.sock:/prpc",
            "vsock://2:10000/api",
            "vsock-uds:/var/vm/vsock.sock:8000/api",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for text in [
            "",
            "nothing",
            "ftp://x",
            "http://",
            "http://user:pw@h/",
            "http://h/?q=1",
            "unix:rel",
            "vsock://2",
            "vsock://a:1",
            "vsock-uds:/p",
            "vsock-uds:p:1",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn trailing_slash_of_the_base_is_dropped() {
        assert_eq!(Endpoint::parse("http://h/prpc/").unwrap().base(), "/prpc");
        assert_eq!(Endpoint::parse("http://h").unwrap().base(), "");
        assert_eq!(Endpoint::parse_service("http://h").unwrap().base(), "/prpc");
        assert_eq!(Endpoint::parse_service("http://h/kms").unwrap().base(), "/kms");
        assert_eq!(Endpoint::parse("http://h/").unwrap().base(), "");
    }
}
