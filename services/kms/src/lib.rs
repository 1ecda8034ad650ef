//! The key management service: releases keys only to measured, allowed code.
//!
//! ```text
//! client ──TLS, certificate with evidence──▶ api ──▶ verification ──▶ authorization ──▶ release ──▶ audit
//!                                                     (collateral)   (list or webhook)   (key tree)   (release log)
//! ```
//! Trust boundary: every caller is untrusted until its evidence is verified, and gets nothing of worth before that. The host of the
//! KMS is untrusted when it runs in a TEE; outside of one ([`config`], `[danger] run_without_tee`) it sees every key.
//!
//! Run: `dstack-kms --config kms.toml`; see `kms.example.toml`. The first start makes the root keys.

mod access;
mod admin;
mod api;
mod audit;
mod bootstrap;
mod cert_policy;
pub mod config;
mod domain;
mod health;
mod key_backend;
mod key_store;
mod machine;
mod metrics;
mod nonce;
mod onboarding;
mod policy;
mod rate_limit;
mod recovery;
mod release;
mod release_log;
mod replication;
mod sealing;
mod self_authorization;
mod server;
mod tee;
mod verification;

pub use access::AccessError;
pub use api::Kms;
pub use key_store::{BootstrapInfo, KeyStoreError, SealedFileError};
pub use machine::import;
pub use onboarding::{Onboarded, OnboardingServer};
pub use release_log::ReleaseLogError;
pub use sealing::{ChipError, ProviderError, SealingError, TpmKeyError};
pub use server::{Server, StartError, network_threads};
