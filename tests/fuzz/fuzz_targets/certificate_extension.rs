//! Certificates that carry evidence.
#![no_main]

use dstack_fuzz as _;
use dstack_ra_tls::{AppInfo, RaTlsCertificate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = AppInfo::decode(data);
    let Ok(certificate) = RaTlsCertificate::parse(data) else { return };
    let _ = (certificate.spki_der(), certificate.app_id(), certificate.usage(), certificate.app_info(), certificate.check_dates(1 << 30));
    let _ = certificate.evidence();
});
