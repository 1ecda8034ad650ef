//! The name in the KMS's certificate.

use std::{fmt, str::FromStr};

/// A DNS name: ASCII, at most 253 bytes, labels of 1 to 63 letters, digits or inner hyphens. No wildcard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain(String);

/// Text that is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a domain name: letters, digits and inner hyphens in labels of 1 to 63, at most 253 bytes")]
pub(crate) struct DomainError;

impl Domain {
    /// A name that this program itself gives.
    pub(crate) fn fixed(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    /// As written.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        if text.len() <= 253 && text.split('.').all(is_label) { Ok(Self(text.to_owned())) } else { Err(DomainError) }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_and_refuses_the_rest() {
        for good in ["a", "kms.example.com", "A-1.b", "1.2.3.4"] {
            assert!(good.parse::<Domain>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        let longest = ["a".repeat(63).as_str(); 4].join(".");
        for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "*.a", "ä", "a b", &long, &longest] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
