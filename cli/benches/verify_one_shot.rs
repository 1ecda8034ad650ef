//! One `dstack verify` of a TDX quote with its collateral in files: the whole life of the process, as a script sees it.
//!
//! `cargo bench -p dstack-cli --bench verify_one_shot`; `DSTACK_BENCH_BIN` names another build of the command. Prints the median wall time
//! and the most memory resident; fails beyond the figures of SPECIFICATION.md.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a benchmark talks and stops")]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const RUNS: usize = 21;
const MOST_TIME: Duration = Duration::from_millis(12);
const MOST_MEMORY: i64 = 16 << 20;

fn main() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/attestation/tests/testdata/tdx/");
    let program = std::env::var("DSTACK_BENCH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_dstack").to_owned());
    let run = || {
        let started = Instant::now();
        let status = Command::new(&program)
            .args(["verify", &format!("{data}quotes/f1c8503301126c30.bin"), "--at", "2025-03-23T20:36:12Z", "--offline", "--json"])
            .args(["--collateral", &format!("{data}collateral/b0c06f000000-tdx-platform-20250313-e17.json")])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "the quote is genuine");
        started.elapsed()
    };
    run();
    let mut times: Vec<Duration> = (0..RUNS).map(|_| run()).collect();
    times.sort_unstable();
    let median = times[RUNS / 2];
    let memory = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() * 1024;
    println!(
        "verify, one shot: {:.1} ms (best {:.1}, worst {:.1}), {:.1} MiB resident",
        ms(median),
        ms(times[0]),
        ms(times[RUNS - 1]),
        mib(memory)
    );
    assert!(median <= MOST_TIME, "more than {MOST_TIME:?}");
    assert!(memory <= MOST_MEMORY, "more than {} MiB", MOST_MEMORY >> 20);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mib(bytes: i64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
