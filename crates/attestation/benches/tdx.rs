//! CPU time to verify a TDX quote offline, and a full bundle (quote, log, identity, image), beside a plain use of `dcap-qvl` in the same
//! run. Medians of seven rounds.
//!
//! Run: `cargo bench -p dstack-attestation --features aws-lc --bench tdx`. Exits with 1 above the promised 0.8 ms and 2 ms.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

use std::{hint::black_box, process::ExitCode, time::Duration};

use dcap_qvl::{QuoteCollateralV3, QuotePolicy, verify::QuoteVerifier};
use dstack_attestation::{
    Context, Endorsements, Evidence, PlatformVerifier as _, Policy, QuoteCollateral, TdxVerifier, TrustAnchors, Verifier,
};
use nix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 7;
const REPEATS: u32 = 100;
const PROMISED_QUOTE: Duration = Duration::from_micros(800);
const PROMISED_BUNDLE: Duration = Duration::from_millis(2);

/// A guest with log, configuration and measurement document; collateral and clock that fit it.
const BUNDLE: &str = include_str!("../tests/testdata/envelopes/tdx-lite-getquote.json");
const COLLATERAL: &str = include_str!("../tests/testdata/tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json");
const NOW: u64 = 1_782_215_784;

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn round(work: &dyn Fn()) -> Duration {
    let started = cpu_time();
    (0..REPEATS).for_each(|_| work());
    (cpu_time() - started) / REPEATS
}

fn median(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort();
    rounds[rounds.len() / 2]
}

fn main() -> ExitCode {
    let evidence = Evidence::parse_json(BUNDLE).unwrap();
    let endorsements = Endorsements::from(QuoteCollateral::parse_json(COLLATERAL).unwrap());
    let library_collateral: QuoteCollateralV3 = serde_json::from_str(COLLATERAL).unwrap();
    let anchors = TrustAnchors::hardware();
    let verifier = Verifier::new(anchors.clone(), Policy::report_only());
    let quote = || {
        let context = Context { anchors: &anchors, endorsements: &endorsements, now: NOW };
        black_box(TdxVerifier.verify(&evidence.quote, &context).unwrap());
    };
    let library = || {
        let policy = QuotePolicy::claims_only(NOW);
        black_box(QuoteVerifier::new_prod().verify_with_policy(&evidence.quote, library_collateral.clone(), NOW, &policy).unwrap());
    };
    let bundle = || {
        let evidence = Evidence::parse_json(BUNDLE).unwrap();
        let endorsements = Endorsements::from(QuoteCollateral::parse_json(COLLATERAL).unwrap());
        black_box(verifier.verify(&evidence, &endorsements, NOW, None).unwrap());
    };
    let subjects: [&dyn Fn(); 3] = [&quote, &library, &bundle];
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..=ROUNDS {
        for (times, work) in rounds.iter_mut().zip(subjects) {
            times.push(round(work));
        }
    }
    // The first round warms up.
    let [quote, library, bundle] = rounds.map(|times: Vec<Duration>| median(times[1..].to_vec()));
    println!("TDX quote offline, CPU: {quote:?} (promised {PROMISED_QUOTE:?}); dcap-qvl alone, as it comes: {library:?}");
    println!("full bundle from JSON, CPU: {bundle:?} (promised {PROMISED_BUNDLE:?})");
    if quote <= PROMISED_QUOTE && bundle <= PROMISED_BUNDLE { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
