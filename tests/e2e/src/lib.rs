//! A local stack under test: the real programs, a real guest, a home of its own.
//!
//! What it needs is made by `make image`; a test that misses it fails and says so.

mod http;
mod stack;

pub use http::{get, try_get, try_get_quickly};
pub use stack::{App, Finished, Stack, hello, os_image, repository};
