//! Host names below a base domain. Source: SPEC.md section 1.

use std::{fmt, str::FromStr};

/// 20 bytes that name an app or one of its instances: which of them, the routing table knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppOrInstanceId([u8; 20]);

impl AppOrInstanceId {
    /// Names the app or instance with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl FromStr for AppOrInstanceId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let digits = <&[u8; 40]>::try_from(text.as_bytes()).map_err(|_| AddressError::Id { got: text.len() })?;
        let mut bytes = [0; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = value.ok_or(AddressError::Id { got: text.len() })?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for AppOrInstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AppOrInstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the front door does with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// TLS ends here; the app gets the bytes inside.
    Terminate,
    /// TLS ends here and speaks HTTP/2 only (suffix `g`, for gRPC).
    TerminateHttp2,
    /// TLS ends in the app (suffix `s`).
    Passthrough,
}

impl Treatment {
    const fn default_port(self) -> u16 {
        match self {
            Self::Terminate | Self::TerminateHttp2 => 80,
            Self::Passthrough => 443,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Terminate => "",
            Self::TerminateHttp2 => "g",
            Self::Passthrough => "s",
        }
    }
}

/// Where a connection is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppAddress {
    /// App or instance.
    pub id: AppOrInstanceId,
    /// TCP port inside the VM, never 0.
    pub port: u16,
    /// What happens to TLS.
    pub treatment: Treatment,
}

/// The gateway itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// `gateway`: evidence of the gateway.
    Evidence,
    /// `health`: whether it answers. For older probes.
    Health,
}

/// A first label below a base domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlatformName {
    /// An app or instance.
    App(AppAddress),
    /// A reserved name.
    Gateway(Gateway),
}

/// A label that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not 40 hexadecimal digits.
    #[error("app or instance id of {got} bytes, expected 40 hexadecimal digits")]
    Id {
        /// Length of what stands there.
        got: usize,
    },
    /// Not a decimal number from 1 to 65535, or another suffix.
    #[error("port is not a number from 1 to 65535, followed by s, g or nothing")]
    Port,
    /// More than one hyphen.
    #[error("more than one hyphen")]
    Hyphens,
}

impl PlatformName {
    /// Reads the first label of a host name, in lower case.
    ///
    /// Errors: see [`AddressError`].
    pub fn parse(label: &str) -> Result<Self, AddressError> {
        match label {
            "gateway" => Ok(Self::Gateway(Gateway::Evidence)),
            "health" => Ok(Self::Gateway(Gateway::Health)),
            _ => label.parse().map(Self::App),
        }
    }
}

impl FromStr for AppAddress {
    type Err = AddressError;

    fn from_str(label: &str) -> Result<Self, AddressError> {
        let (id, tail) = match label.split_once('-') {
            None => (label, None),
            Some((_, tail)) if tail.contains('-') => return Err(AddressError::Hyphens),
            Some((id, tail)) => (id, Some(tail)),
        };
        let id = id.parse()?;
        let Some(tail) = tail else {
            return Ok(Self { id, port: Treatment::Terminate.default_port(), treatment: Treatment::Terminate });
        };
        let (port, treatment) = match tail.as_bytes().last() {
            Some(b'g') => (&tail[..tail.len() - 1], Treatment::TerminateHttp2),
            Some(b's') => (&tail[..tail.len() - 1], Treatment::Passthrough),
            // A hyphen says that something follows.
            None => return Err(AddressError::Port),
            Some(_) => (tail, Treatment::Terminate),
        };
        let port = if port.is_empty() { treatment.default_port() } else { parse_port(port)? };
        Ok(Self { id, port, treatment })
    }
}

/// A decimal port without sign; leading zeros up to five digits are read as deployed gateways read them.
pub(crate) fn parse_port(text: &str) -> Result<u16, AddressError> {
    if !(1..=5).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::Port);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Port)
}

impl fmt::Display for AppAddress {
    /// The shortest label that reads as this address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = self.treatment.suffix();
        match (self.port == self.treatment.default_port(), suffix) {
            (true, "") => write!(f, "{}", self.id),
            (true, suffix) => write!(f, "{}-{suffix}", self.id),
            (false, suffix) => write!(f, "{}-{}{suffix}", self.id, self.port),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn read(tail: &str) -> Result<(u16, Treatment), AddressError> {
        let address: AppAddress = format!("{ID}{tail}").parse()?;
        assert_eq!(address.id.to_string(), ID);
        Ok((address.port, address.treatment))
    }

    #[test]
    fn reads_every_form() {
        assert_eq!(read(""), Ok((80, Treatment::Terminate)));
        assert_eq!(read("-8080"), Ok((8080, Treatment::Terminate)));
        assert_eq!(read("-s"), Ok((443, Treatment::Passthrough)));
        assert_eq!(read("-8443s"), Ok((8443, Treatment::Passthrough)));
        assert_eq!(read("-g"), Ok((80, Treatment::TerminateHttp2)));
        assert_eq!(read("-50051g"), Ok((50051, Treatment::TerminateHttp2)));
        assert_eq!(read("-00080"), Ok((80, Treatment::Terminate)));
    }

    #[test]
    fn refuses_every_other_form() {
        for tail in ["-", "-0", "-65536", "-000080", "-8080sg", "-8080gs", "-8080x", "-+80", "-gs", "-ss", "- 80"] {
            assert_eq!(read(tail), Err(AddressError::Port), "{tail}");
        }
        for tail in ["-80-s", "-80-", "--"] {
            assert_eq!(read(tail), Err(AddressError::Hyphens), "{tail}");
        }
        for tail in ["0", "s", "g"] {
            assert_eq!(read(tail), Err(AddressError::Id { got: 41 }), "{tail}");
        }
        assert_eq!("app".parse::<AppAddress>(), Err(AddressError::Id { got: 3 }));
        assert_eq!(ID.replace('0', "g").parse::<AppAddress>(), Err(AddressError::Id { got: 40 }));
    }

    #[test]
    fn reserved_names_are_no_apps() {
        assert_eq!(PlatformName::parse("gateway"), Ok(PlatformName::Gateway(Gateway::Evidence)));
        assert_eq!(PlatformName::parse("health"), Ok(PlatformName::Gateway(Gateway::Health)));
        assert_eq!(PlatformName::parse("gateway-80"), Err(AddressError::Id { got: 7 }));
        assert!(matches!(PlatformName::parse(ID), Ok(PlatformName::App(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(id: [u8; 20], port in 1_u16.., kind in 0..3) {
            let treatment = [Treatment::Terminate, Treatment::TerminateHttp2, Treatment::Passthrough][usize::try_from(kind).unwrap()];
            let address = AppAddress { id: AppOrInstanceId::new(id), port, treatment };
            let label = address.to_string();
            prop_assert!(label.len() <= 63);
            prop_assert_eq!(label.parse(), Ok(address));
        }

        #[test]
        fn any_label_is_read_or_refused(label in "[0-9a-gs-]{0,50}") {
            let _ = PlatformName::parse(&label);
        }
    }
}
