//! A start without keys that waits for a person: over plain HTTP, a page and the calls of `Onboard`.
//!
//! Trust: nothing secret crosses this listener. Whoever reaches it first decides where the keys come from, which is why owners check the
//! public keys and the evidence over them, and why a token can be demanded.

mod calls;
mod page;
mod server;

pub use server::{Onboarded, OnboardingServer};
