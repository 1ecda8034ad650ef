//! Strangers' bytes: every answer is an error that names what fails, without a panic and within 64 MiB.
//!
//! One test function, so that the counting allocator sees one thing at a time.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, reason = "the allocator counts; tests panic on purpose")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use dstack_attestation::{
    Attestation, Endorsements, Envelope, EnvelopeError, Evidence, PlatformEvidence, Policy, QuoteCollateral, Reason, SgxVerifier,
    TdxVerifier, TrustAnchors, UnverifiedQuote, UnverifiedSgxQuote, Vendor, Verifier, VerifyError,
};

const LIMIT: usize = 64 << 20;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    PEAK.fetch_max(LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and fails if it ever holds more than the limit beyond what was there before.
fn bounded<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let answer = work();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    assert!(peak <= LIMIT, "{what}: {peak} bytes");
    answer
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

struct Subject {
    name: &'static str,
    quote: Vec<u8>,
    endorsements: Endorsements,
    time: u64,
}

impl Subject {
    fn new(name: &'static str, folder: &str, quote: &str, collateral: &str, time: u64) -> Self {
        let text = String::from_utf8(data(&format!("{folder}/collateral/{collateral}"))).unwrap();
        let endorsements = QuoteCollateral::parse_json(&text).unwrap().into();
        Self { name, quote: data(&format!("{folder}/quotes/{quote}")), endorsements, time }
    }

    fn verify(&self, quote: &[u8]) -> Result<(), VerifyError> {
        let verifier = Verifier::new(TrustAnchors::hardware(), Policy::report_only());
        if self.name == "sgx" {
            return verifier.verify_platform(&SgxVerifier, quote, &self.endorsements, self.time, None).map(|_| ());
        }
        verifier.verify_platform(&TdxVerifier, quote, &self.endorsements, self.time, None).map(|_| ())
    }

    fn signed_bytes(&self) -> usize {
        match self.name {
            "v4" => 632,
            "v5" => 702,
            _ => 432,
        }
    }

    /// Where the quoting enclave's report begins; its signature follows.
    fn quoting_enclave_at(&self) -> usize {
        // Length, signature, key; in versions 4 and 5 the type and size of what encloses it.
        self.signed_bytes() + 4 + 128 + if self.name == "sgx" { 0 } else { 6 }
    }

    /// Where the damage is done decides which link fails; every refusal has one.
    fn must_refuse(&self, quote: &[u8], what: &str) {
        let error = bounded(what, || self.verify(quote)).expect_err(what);
        assert!(matches!(*error.reason, Reason::Signature { .. } | Reason::TdAttributes(_) | Reason::Debug), "{what}: {error}");
        assert!(error.to_string().len() < 500, "{what}: {error}");
    }
}

fn subjects() -> [Subject; 3] {
    [
        Subject::new("v4", "tdx", "f1c8503301126c30.bin", "b0c06f000000-tdx-platform-20250313-e17.json", 1_742_762_172),
        Subject::new("v5", "tdx", "cf77a6e91e48291d.bin", "90c06f000000-tdx-platform-20260112-e18.json", 1_770_191_602),
        Subject::new("sgx", "sgx", SGX_QUOTE, SGX_COLLATERAL, SGX_TIME),
    ]
}

const SGX_QUOTE: &str = "f8b81014b6e44360.bin";
const SGX_COLLATERAL: &str = "00a067110000-sgx-processor-20231121-e16.json";
const SGX_TIME: u64 = 1_701_822_167;

fn quotes() {
    for subject in subjects() {
        subject.verify(&subject.quote).unwrap_or_else(|error| panic!("{}: {error}", subject.name));
        // Parsing decides about nearly every length; the last ones reach the verification.
        for length in 0..subject.quote.len() {
            let cut = &subject.quote[..length];
            assert!(bounded("a cut quote", || UnverifiedQuote::parse(cut).is_err() && UnverifiedSgxQuote::parse(cut).is_err()), "{length}");
        }
        for length in [0, 1, 47, 48, 431, 631, subject.quote.len() - 1] {
            subject.must_refuse(&subject.quote[..length], &format!("{} cut to {length}", subject.name));
        }
        let (signed, enclave) = (subject.signed_bytes(), subject.quoting_enclave_at());
        for at in (0..signed).step_by(37).chain((signed + 4..signed + 132).step_by(17)).chain((enclave..enclave + 448).step_by(41)) {
            let mut flipped = subject.quote.clone();
            flipped[at] ^= 1 << (at % 8);
            subject.must_refuse(&flipped, &format!("{} with bit {} of byte {at} flipped", subject.name, at % 8));
        }
        for length in [100, 8000, 10 << 20] {
            subject.must_refuse(&vec![0; length], "zeros");
            subject.must_refuse(&vec![0xff; length], "ones");
        }
        let mut padded = subject.quote.clone();
        padded.resize(10 << 20, 0);
        subject.must_refuse(&padded, "10 MiB of padding");
    }
}

fn papers() {
    let subject = &subjects()[0];
    let collateral = subject.endorsements.collateral.clone().unwrap();
    let verify = |change: &dyn Fn(&mut QuoteCollateral)| {
        let mut changed = collateral.clone();
        change(&mut changed);
        let changed = Subject { endorsements: changed.into(), quote: subject.quote.clone(), ..*subject };
        changed.must_refuse(&subject.quote, "changed papers");
    };
    verify(&|papers| papers.tcb_info = "{}".into());
    verify(&|papers| papers.tcb_info = "[".repeat(100_000));
    verify(&|papers| papers.tcb_info_signature.clear());
    verify(&|papers| papers.qe_identity = " ".into());
    verify(&|papers| papers.qe_identity_signature = vec![0xff; 64]);
    verify(&|papers| papers.pck_crl = vec![0; 10 << 20]);
    verify(&|papers| papers.root_ca_crl = vec![0x30; 1000]);
    verify(&|papers| papers.tcb_info_issuer_chain.clear());
    verify(&|papers| papers.tcb_info_issuer_chain = papers.pck_crl_issuer_chain.repeat(50));
    verify(&|papers| papers.qe_identity_issuer_chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into());
    verify(&|papers| papers.pck_certificate_chain = Some(String::new()));
    let text = serde_json::to_string(&collateral).unwrap();
    for cut in (0..text.len()).step_by(97) {
        assert!(bounded("cut papers", || QuoteCollateral::parse_json(&text[..cut])).is_err(), "{cut}");
    }
    let other = TrustAnchors::hardware().replace(Vendor::Intel, [include_bytes!("../roots/amd-ark-milan.der").to_vec()]).unwrap();
    let verifier = Verifier::new(other, Policy::report_only());
    let error = verifier.verify_platform(&TdxVerifier, &subject.quote, &subject.endorsements, subject.time, None).unwrap_err();
    assert!(error.to_string().contains("does not end in the trust anchor"), "{error}");
}

/// `bin` that claims 4 GiB.
const HUGE_BIN: [u8; 5] = [0xc6, 0xff, 0xff, 0xff, 0xff];

fn envelopes() {
    for name in ["guest-agent-attestation.bin", "sev-snp-attestation.bin"] {
        let v0 = data(&format!("envelopes/{name}"));
        let good = Envelope::decode(&v0).unwrap();
        let v1 = good.encode();
        assert_eq!(Envelope::decode(&v1).unwrap(), good);
        for bytes in [&v0, &v1] {
            for length in 0..bytes.len() {
                assert!(bounded("a cut envelope", || Envelope::decode(&bytes[..length])).is_err(), "{name} cut to {length}");
            }
            for at in (0..bytes.len()).step_by(7) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x80;
                let _any_answer = bounded("a flipped envelope", || Envelope::decode(&flipped));
            }
        }
    }
    for first in [0, 0x83] {
        let mut zeros = vec![0; 10 << 20];
        zeros[0] = first;
        assert!(bounded("zeros", || Envelope::decode(&zeros)).is_err());
    }
    let long = vec![0; (10 << 20) + 1];
    assert_eq!(Envelope::decode(&long), Err(EnvelopeError::TooLong { got: long.len() }));
    // Lengths that promise more than there is.
    for platform in 0..5 {
        for length in [vec![0xfe, 0xff, 0xff, 0xff], vec![0x03, 0xff, 0xff, 0xff, 0xff], vec![0x0b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
            let bytes = [vec![0, platform], length].concat();
            assert!(bounded("a long SCALE vector", || Envelope::decode(&bytes)).is_err());
        }
    }
    let nested = [vec![0x83], vec![0x91; 9 << 20]].concat();
    assert!(bounded("nested arrays", || Envelope::decode(&nested)).is_err());
    let huge = [&[0x83, 0xa7][..], b"version", &[1, 0xa8], b"platform", &[0x82, 0xa4], b"kind", &HUGE_BIN].concat();
    assert!(bounded("a huge bin", || Envelope::decode(&huge)).is_err());
    let huge_array = [&[0x83, 0xa7][..], b"version", &[1, 0xa5], b"stack", &[0xdd, 0xff, 0xff, 0xff, 0xff]].concat();
    assert!(bounded("a huge array", || Envelope::decode(&huge_array)).is_err());
}

fn json() {
    let attestation = Attestation::decode(&data("envelopes/guest-agent-attestation.bin")).unwrap();
    let text = serde_json::json!({ "attestation": hex::encode(attestation.encode()) }).to_string();
    for cut in (0..text.len()).step_by(89) {
        assert!(bounded("cut JSON", || Evidence::parse_json(&text[..cut])).is_err(), "{cut}");
    }
    for text in
        ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 20), "\0".repeat(10 << 20), format!("{{\"quote\":\"{}\"}}", "0".repeat((10 << 20) + 1))]
    {
        assert!(bounded("JSON", || Evidence::parse_json(&text)).is_err());
    }
    // Compressed data is not evidence here, however deeply it is packed.
    let mut packed = vec![0; 10 << 20];
    for _ in 0..3 {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&packed).unwrap();
        packed = encoder.finish().unwrap();
        assert!(bounded("gzip", || Envelope::decode(&packed)).is_err());
        assert!(bounded("gzip", || UnverifiedQuote::parse(&packed)).is_err());
    }
    assert!(matches!(Envelope::decode(&data("envelopes/sev-snp-attestation.bin")).unwrap().evidence, PlatformEvidence::SevSnp { .. }));
}

#[test]
fn strangers_bytes_get_an_error_within_bounds() {
    quotes();
    papers();
    envelopes();
    json();
}
