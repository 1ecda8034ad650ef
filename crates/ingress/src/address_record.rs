//! TXT records by which the owner of a domain names the app behind it. Source: SPEC.md section 2.

use std::str::FromStr;

use crate::{AddressError, AppOrInstanceId, DomainName, address::parse_port};

/// Longest record that is read: id, colon, port.
const MAX_BYTES: usize = 40 + 1 + 5;

/// The value of a record: where TLS for the domain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRecord {
    /// App, or the one instance that the owner pins.
    pub id: AppOrInstanceId,
    /// TCP port inside the VM, never 0.
    pub port: u16,
}

/// Text that is not `<id>:<port>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressRecordError {
    /// No colon, or too long.
    #[error("address record is not <app or instance id>:<port>")]
    Form,
    /// One of the two parts.
    #[error(transparent)]
    Part(#[from] AddressError),
}

impl FromStr for AddressRecord {
    type Err = AddressRecordError;

    fn from_str(text: &str) -> Result<Self, AddressRecordError> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(AddressRecordError::Form);
        }
        let (id, port) = text.split_once(':').ok_or(AddressRecordError::Form)?;
        Ok(Self { id: id.parse()?, port: parse_port(port)? })
    }
}

/// The names at which records for a domain are looked for, in the order in which an answer counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordNames {
    /// For this domain alone. The second is of older owners.
    pub exact: [String; 2],
    /// For every name below the parent; `None` for a name of one label.
    pub wildcard: Option<String>,
}

impl RecordNames {
    /// The names for `domain`.
    #[must_use]
    pub fn of(domain: &DomainName) -> Self {
        Self {
            exact: [format!("_dstack-app-address.{domain}"), format!("_tapp-address.{domain}")],
            wildcard: domain.split().map(|(_, parent)| format!("_dstack-app-address-wildcard.{parent}")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn reads_id_and_port() {
        let record: AddressRecord = format!(" {}:8443 ", ID.to_uppercase()).parse().unwrap();

        assert_eq!((record.id.to_string().as_str(), record.port), (ID, 8443));
    }

    #[test]
    fn refuses_everything_else() {
        let refused = |text: &str| text.parse::<AddressRecord>().unwrap_err();

        assert_eq!(refused(ID), AddressRecordError::Form);
        assert_eq!(refused(&format!("{ID}:443:1")), AddressRecordError::Part(AddressError::Port));
        assert_eq!(refused(&format!("{ID}:")), AddressRecordError::Part(AddressError::Port));
        assert_eq!(refused(&format!("{ID}:0")), AddressRecordError::Part(AddressError::Port));
        assert_eq!(refused("localhost:22"), AddressRecordError::Part(AddressError::Id { got: 9 }));
        assert_eq!(refused(&"1:".repeat(5000)), AddressRecordError::Form);
    }

    #[test]
    fn names_are_asked_for_the_domain_and_its_parent() {
        let names = RecordNames::of(&"shop.example.com".parse().unwrap());

        assert_eq!(names.exact, ["_dstack-app-address.shop.example.com", "_tapp-address.shop.example.com"]);
        assert_eq!(names.wildcard.as_deref(), Some("_dstack-app-address-wildcard.example.com"));
        assert_eq!(RecordNames::of(&"localhost".parse().unwrap()).wildcard, None);
    }
}
