//! The verifier: judges evidence for whoever asks over HTTP.
//!
//! ```text
//! POST /verify ──▶ api ──▶ verification ──▶ answer
//!                           │  ├─ collateral (vendor's papers, cached)
//!                           │  └─ images (OS images by hash, cached), where the evidence carries no measurement document
//!                           └─ policy, roots: from the configuration alone
//! ```
//! Trust boundary: whoever asks is a stranger, and so are collateral service, image server and cache: what they give is signed or held to
//! a hash. The one who asks trusts this service's answer, so it belongs beside him; there is no secret in it.
//!
//! Run: `dstack-verifier --config verifier.toml`; see `verifier.example.toml`.

mod answer;
pub mod api;
pub mod certificate;
pub mod config;
mod debug;
mod environment;
mod error;
mod images;
mod metrics;
mod papers;
mod server;
mod verification;

pub use error::Refusal;
pub use server::{Server, StartError};
pub use verification::Verification;
