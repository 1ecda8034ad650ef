//! CPU time to verify an SEV-SNP report with its full chain, beside a plain use of the `sev` crate in the same run. Medians of seven rounds.
//!
//! Run: `cargo bench -p dstack-attestation --features aws-lc --bench snp`. Exits with 1 above the promised 1.6 ms.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

use std::{hint::black_box, process::ExitCode, time::Duration};

use dstack_attestation::{Context, Endorsements, TrustAnchors, sev_snp::SevSnp};
use nix::time::{ClockId, clock_gettime};
use sev::{
    certs::snp::{Certificate, Chain, Verifiable as _, ca},
    firmware::guest::AttestationReport,
    parser::ByteParser as _,
};

const ROUNDS: usize = 7;
const REPEATS: u32 = 40;
const PROMISED: Duration = Duration::from_micros(1600);
/// Within the validity of every certificate here.
const NOW: u64 = 1_786_842_304;

/// Milan, version 3; VCEK, ASK and ARK.
const REPORT: &[u8] = include_bytes!("../tests/testdata/snp/reports/a20e02a2e8198894.bin");
const CHAIN: [&[u8]; 3] = [
    include_bytes!("../tests/testdata/snp/keys/vcek-1b35b841.der"),
    include_bytes!("../intermediates/amd-sev-milan.der"),
    include_bytes!("../roots/amd-ark-milan.der"),
];

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn round(work: &dyn Fn()) -> Duration {
    let started = cpu_time();
    (0..REPEATS).for_each(|_| work());
    (cpu_time() - started) / REPEATS
}

/// Structure, chain, dates, product, chip, TCB and signature, from bytes; as a verifier service does it for each report.
fn ours() {
    let endorsements = Endorsements { certificates: CHAIN.map(<[u8]>::to_vec).to_vec(), ..Endorsements::default() };
    let anchors = TrustAnchors::hardware();
    let context = Context { anchors: &anchors, endorsements: &endorsements, now: NOW };
    black_box(SevSnp.verify_report(REPORT, &context).unwrap());
}

/// Chain and signature, from bytes. No dates, and chip and TCB are compared by the crate where the report names its CPU.
fn sev_crate() {
    let [vek, ask, ark] = CHAIN.map(|der| Certificate::from_der(der).unwrap());
    let chain = Chain { ca: ca::Chain { ark, ask }, vek };
    let report = AttestationReport::from_bytes(REPORT).unwrap();
    (&chain, &report).verify().unwrap();
}

fn main() -> ExitCode {
    let candidates: [(&str, &dyn Fn()); 2] = [("ours", &ours), ("sev 7, crypto_nossl", &sev_crate)];
    let mut rounds = [[Duration::ZERO; ROUNDS]; 2];
    for index in 0..ROUNDS {
        // In turn, so that both see the same machine.
        for ((_, work), rounds) in candidates.iter().zip(&mut rounds) {
            rounds[index] = round(work);
        }
    }
    let medians = rounds.map(|mut rounds| {
        rounds.sort();
        rounds[ROUNDS / 2]
    });
    for ((name, _), median) in candidates.iter().zip(medians) {
        println!("SNP report with full chain, {name}: {:.3} ms", median.as_secs_f64() * 1000.0);
    }
    let [ours, _] = medians;
    println!("promised: {:.1} ms", PROMISED.as_secs_f64() * 1000.0);
    if ours <= PROMISED { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
