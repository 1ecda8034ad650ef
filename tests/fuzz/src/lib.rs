//! What every fuzz target has: a bound on memory.
//!
//! A parser that needs more than [`MEMORY`] for an input of at most 64 KiB aborts the run, as a panic does.

use std::alloc::System;

use cap::Cap;

/// Bytes that the code under test may hold at once.
pub const MEMORY: usize = 64 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY);
