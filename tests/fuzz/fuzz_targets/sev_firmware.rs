//! SEV-SNP firmware: sections and launch digest.
#![no_main]

use dstack_fuzz as _;
use dstack_measurement::snp::{CpuSignature, SevFirmware, SnpShape, launch_digest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(firmware) = SevFirmware::parse(data) else { return };
    let Ok(cpu) = "EPYC-v4".parse::<CpuSignature>() else { return };
    let _ = launch_digest(&firmware, None, &SnpShape::new(2, cpu));
});
