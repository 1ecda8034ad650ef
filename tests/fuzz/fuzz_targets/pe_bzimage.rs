//! Kernels: Authenticode digest of any PE image, and of a bzImage as QEMU changes it.
#![no_main]

use dstack_fuzz as _;
use dstack_measurement::{
    authenticode,
    kernel::{self, KernelPlacement, SetupHeader},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = authenticode::sha384(data);
    for header in [SetupHeader::Unchanged, SetupHeader::Qemu, SetupHeader::Document] {
        for (memory_size, initrd_len) in [(0, 0), (2 << 30, 1 << 20), (64 << 30, usize::MAX), (u64::MAX, 1)] {
            let _ = kernel::measure(data, initrd_len, "console=ttyS0", KernelPlacement { memory_size, header });
        }
    }
});
