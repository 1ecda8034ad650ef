//! TDX firmware: metadata, MRTD and TD HOB.
#![no_main]

use dstack_fuzz as _;
use dstack_measurement::{PageAddOrder, kernel_blob::KernelBlob, mrtd::mrtd, td_hob::TdHobWitness, tdvf::Tdvf};
use libfuzzer_sys::fuzz_target;

/// Firmware that describes more memory is parsed, not measured: hashing 256 MiB per input would find nothing.
const MEASURED_MEMORY: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let _ = KernelBlob::of_firmware(data);
    let Ok(firmware) = Tdvf::parse(data) else { return };
    if firmware.sections().iter().map(|section| section.memory_len).sum::<u64>() <= MEASURED_MEMORY {
        let _ = (mrtd(&firmware, PageAddOrder::SinglePass), mrtd(&firmware, PageAddOrder::TwoPass));
    }
    let Ok(witness) = TdHobWitness::from_tdvf(&firmware) else { return };
    for memory in [0, 2 << 30, 3 << 30, 64 << 30, u64::MAX] {
        let _ = witness.td_hob(memory);
    }
    if let Ok(again) = TdHobWitness::decode(&witness.encode()) {
        assert_eq!(again, witness);
    }
});
