//! `dstack-verdict` behind a WebAssembly ABI of three functions.
//!
//! ```text
//! host                                                module
//! dstack_input(n)            ──────▶ pointer to n bytes, which the host fills
//! dstack_verify()            ──────▶ length of the answer
//! dstack_output()            ──────▶ pointer to the answer, valid until the next dstack_input
//! ```
//! Input: length of the options (4 bytes, little-endian), the options (JSON, [`Options`]), the evidence. Answer: the verdict as JSON, or
//! `{"error":"…"}` where the question itself is wrong. Pure: the module imports nothing.

pub mod abi;
mod options;

pub use options::{Options, verify};
