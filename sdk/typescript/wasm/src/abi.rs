//! The exported functions. WebAssembly runs one thread, so the buffers are never contended.
#![allow(unsafe_code, reason = "exporting a symbol under its own name is `unsafe(no_mangle)`; there is no unsafe block")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use dstack_verdict::MAX_INPUT_BYTES;

use crate::options;

/// Evidence, papers, logs and options together.
const MAX_REQUEST_BYTES: usize = 4 * MAX_INPUT_BYTES;

#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

static BUFFERS: Mutex<Buffers> = Mutex::new(Buffers { input: Vec::new(), output: Vec::new() });

fn buffers() -> MutexGuard<'static, Buffers> {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of `length` bytes for the next request; null if that is too much.
// SAFETY: the name is used once in the module.
#[unsafe(no_mangle)]
pub extern "C" fn dstack_input(length: usize) -> *mut u8 {
    if length > MAX_REQUEST_BYTES {
        return std::ptr::null_mut();
    }
    let mut buffers = buffers();
    buffers.output = Vec::new();
    buffers.input = vec![0; length];
    buffers.input.as_mut_ptr()
}

/// Judges the request in the buffer; returns the length of the answer.
// SAFETY: the name is used once in the module.
#[unsafe(no_mangle)]
pub extern "C" fn dstack_verify() -> usize {
    let mut buffers = buffers();
    let request = std::mem::take(&mut buffers.input);
    buffers.output = options::answer(&request).into_bytes();
    buffers.output.len()
}

/// The answer.
// SAFETY: the name is used once in the module.
#[unsafe(no_mangle)]
pub extern "C" fn dstack_output() -> *const u8 {
    buffers().output.as_ptr()
}
