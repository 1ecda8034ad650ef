//! Names in DNS, as a client asks for them.

use std::{fmt, str::FromStr};

/// A domain name: lower case, letters, digits, hyphens and underscores, labels of 1 to 63 bytes, at most 253 bytes, no final dot.
///
/// Not an address: a name whose last label is a number is refused (RFC 6066 section 3, WHATWG URL section 3.5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// Text that is not a domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainNameError {
    /// Empty, or more than 253 bytes.
    #[error("domain name of {got} bytes, expected 1 to 253")]
    Length {
        /// Its length.
        got: usize,
    },
    /// An empty label or one of more than 63 bytes.
    #[error("label of {got} bytes at offset {offset}, expected 1 to 63")]
    Label {
        /// Where it begins.
        offset: usize,
        /// Its length.
        got: usize,
    },
    /// Another byte, or a hyphen at the edge of a label.
    #[error("byte {byte:#04x} at offset {offset} cannot stand there")]
    Byte {
        /// Where.
        offset: usize,
        /// Which.
        byte: u8,
    },
    /// An IPv4 address or the like.
    #[error("the last label is a number: an address is no domain name")]
    Address,
}

impl DomainName {
    /// Reads a name as it comes from a stranger; upper case is folded.
    ///
    /// Errors: see [`DomainNameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DomainNameError> {
        if !(1..=253).contains(&bytes.len()) {
            return Err(DomainNameError::Length { got: bytes.len() });
        }
        let mut offset = 0;
        for label in bytes.split(|byte| *byte == b'.') {
            check_label(label, offset)?;
            offset += label.len() + 1;
        }
        let text: String = bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        let last = text.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DomainNameError::Address);
        }
        Ok(Self(text))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// First label and the name without it; `None` for a name of one label.
    #[must_use]
    pub fn split(&self) -> Option<(&str, &str)> {
        self.0.split_once('.')
    }
}

fn check_label(label: &[u8], offset: usize) -> Result<(), DomainNameError> {
    if !(1..=63).contains(&label.len()) {
        return Err(DomainNameError::Label { offset, got: label.len() });
    }
    for (index, byte) in label.iter().enumerate() {
        let is_edge = index == 0 || index + 1 == label.len();
        if !(byte.is_ascii_alphanumeric() || *byte == b'_' || (*byte == b'-' && !is_edge)) {
            return Err(DomainNameError::Byte { offset: offset + index, byte: *byte });
        }
    }
    Ok(())
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn folds_case_and_splits_off_the_first_label() {
        let name: DomainName = "App-8080.Example.COM".parse().unwrap();

        assert_eq!(name.as_str(), "app-8080.example.com");
        assert_eq!(name.split(), Some(("app-8080", "example.com")));
        assert_eq!("localhost".parse::<DomainName>().unwrap().split(), None);
    }

    #[test]
    fn refuses_what_is_no_name() {
        let refused = |text: &str| text.parse::<DomainName>().unwrap_err();
        let long = ["a"; 127].join(".");

        assert_eq!(refused(""), DomainNameError::Length { got: 0 });
        assert_eq!(refused(&format!("{long}.b")), DomainNameError::Length { got: 255 });
        assert!(long.parse::<DomainName>().is_ok());
        assert_eq!(refused("a..b"), DomainNameError::Label { offset: 2, got: 0 });
        assert_eq!(refused("example.com."), DomainNameError::Label { offset: 12, got: 0 });
        assert_eq!(refused(&format!("a.{}", "b".repeat(64))), DomainNameError::Label { offset: 2, got: 64 });
        assert_eq!(refused("a.b c"), DomainNameError::Byte { offset: 3, byte: b' ' });
        assert_eq!(refused("a.-b"), DomainNameError::Byte { offset: 2, byte: b'-' });
        assert_eq!(refused("a-.b"), DomainNameError::Byte { offset: 1, byte: b'-' });
        assert_eq!(refused("b\u{fc}cher.de"), DomainNameError::Byte { offset: 1, byte: 0xc3 });
        assert_eq!(refused("192.0.2.1"), DomainNameError::Address);
    }
}
