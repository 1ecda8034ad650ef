//! Root keys go from one KMS to another over one connection on which both have proven themselves.
//!
//! ```text
//! receiver                                             sender
//!   │ TLS, both certificates carry evidence              │   each side judges the other inside the handshake
//!   ├── GetKmsKey { nonce } ────────────────────────────▶│   evidence, then policy: may this be a KMS?
//!   │◀── keys, certificate, signature ───────────────────┤   signature by the certificate's key over the transcript
//!   │ evidence of that certificate, policy, signature, root of the certificate = root received
//! ```
//! The signature covers the nonce, both certificates and the keys (SPEC.md §3), so the peer whose evidence was believed is the one that
//! sent the keys, whatever lies between.

mod receive;
mod send;
mod transcript;

pub(crate) use receive::Receiver;
pub(crate) use send::{SendError, Sender};
