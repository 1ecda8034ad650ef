//! rustls configurations of both ends.
//!
//! A peer's identity is its authority and usage (a KMS) or its evidence (a guest), not its host name: guests reach a KMS under whatever
//! address the host gives them. Only TLS 1.3 and 1.2 with aws-lc-rs.
//!
//! # Resumed sessions
//! rustls verifies no certificate when a session is resumed: it restores the chain that the peer showed in the handshake it resumes,
//! and whoever resumes has proven to be that peer. So a resumed connection is worth exactly what its chain is worth *now*:
//! - the application judges the evidence of every connection, resumed or not, from the chain that the connection has
//!   ([`EvidenceVerifier::of_certificate`](crate::EvidenceVerifier::of_certificate)): from the verdict cache while verdict, collateral and
//!   certificate last, anew after that. A session carries no verdict, so none can outlive its grounds;
//! - a session is resumed for at most [`MAX_SESSION_AGE`] on both ends, which bounds what is decided inside the handshake alone
//!   (authority, usage, dates);
//! - sessions stay in the memory of one configuration: no tickets that another configuration, with other authorities, would honour.

mod attested;
mod config;
mod handshake;
mod pinned;
mod sessions;

pub use attested::{attested_client, attested_server};
pub use config::{Identity, anonymous_server, danger_unverified_client, pinned_client, pinned_client_keeping_leaf, server};
pub use handshake::{ByRule, PeerCertificates, Shown};
pub use pinned::ServerLeaf;
pub use sessions::MAX_SESSION_AGE;
