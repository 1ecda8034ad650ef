//! Requests for certificates: what is accepted encodes to what was read.
#![no_main]

use dstack_fuzz as _;
use dstack_ra_tls::CertRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for version in [1, 2] {
        let Ok(request) = CertRequest::decode(version, data) else { continue };
        assert_eq!(CertRequest::decode(version, &request.encode()).ok().as_ref(), Some(&request));
        let _ = request.evidence();
        assert!(CertRequest::verify(version, data, &[]).is_err(), "an empty signature verifies");
    }
});
