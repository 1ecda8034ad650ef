//! A local stack under test: the real programs, a real guest, a home of its own.
//!
//! What it needs is made by `make image`; a test that misses it fails and says so.

mod holdings;
mod http;
mod stack;

pub use holdings::Holdings;
pub use http::{get, try_get, try_get_quickly};
pub use stack::{App, Finished, Refusal, Stack, eventually, hello, os_image, repository};
