//! The guest agent as containers, strangers and the host see it, over a software TEE device.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

#[path = "agent/fixture.rs"]
mod fixture;
#[path = "agent/inside.rs"]
mod inside;
#[path = "agent/kms.rs"]
mod kms;
#[path = "agent/kms_trust.rs"]
mod kms_trust;
#[path = "agent/outside.rs"]
mod outside;
#[path = "agent/restart.rs"]
mod restart;
#[path = "agent/tee.rs"]
mod tee;
