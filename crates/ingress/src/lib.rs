//! What arrives at a front door before anything about it is trusted. Pure parsers: no sockets, no clock.
//!
//! ```text
//! bytes ── ProxyHeader::parse ──▶ who connects, if the sender is trusted to say so
//!       ── ClientHelloReader ───▶ server name, ALPN
//!                                   │ DomainName::split
//!                                   ▼
//!                     AppAddress (under a base domain)   or   AddressRecord from DNS (a domain of the app's owner)
//! ```
//! The grammar is in `SPEC.md`.

mod address;
mod address_record;
mod client_hello;
mod domain_name;
mod proxy_header;
mod reader;

pub use address::{AddressError, AppAddress, AppOrInstanceId, Gateway, PlatformName, Treatment};
pub use address_record::{AddressRecord, AddressRecordError, RecordNames};
pub use client_hello::{ClientHello, ClientHelloError, ClientHelloReader, MAX_CLIENT_HELLO_BYTES};
pub use domain_name::{DomainName, DomainNameError};
pub use proxy_header::{Endpoints, MAX_PROXY_HEADER_BYTES, ProxyHeader, ProxyHeaderError};
