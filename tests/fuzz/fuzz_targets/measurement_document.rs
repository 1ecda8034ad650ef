//! Measurement documents and checksum files: what is accepted encodes to what was read.
#![no_main]

use dstack_fuzz as _;
use dstack_measurement::{checksum::ChecksumFile, snp::SnpImageMeasurement, td_hob::TdHobWitness, tdx::ImageMeasurement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(document) = ImageMeasurement::decode(data) {
        assert_eq!(ImageMeasurement::decode(&document.encode()).ok().as_ref(), Some(&document));
    }
    if let Ok(document) = SnpImageMeasurement::decode(data) {
        assert_eq!(SnpImageMeasurement::decode(&document.encode()).ok().as_ref(), Some(&document));
    }
    if let Ok(witness) = TdHobWitness::decode(data) {
        assert_eq!(witness.encode(), data, "two encodings of one witness");
        let _ = (witness.hob_address(), witness.td_hob(4 << 30));
    }
    if let Ok(file) = ChecksumFile::parse(data) {
        assert!(file.entries().count() > 0 || data.is_empty());
    }
});
